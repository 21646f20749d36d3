"""What the environment says and does not say."""

from __future__ import annotations

import os


def drop_empty_keys() -> None:
    """Unset AWS_* variables that are empty, before a client of S3 is made.

    Compose files and secrets pass on what is not set as an empty string. To the clients an empty endpoint is an address
    that does not parse and an empty key a key, where the role of the node should be used.
    """
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value.strip()]:
        del os.environ[name]
