"""Size of the picture and of its file, as the header tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.sample import Sample

VERSION: int = 1


def size(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Header facts, one dict per sample (schemas/columns.py, operator `size`).

    A picture that does not decode raises its RowError, whose `columns` hold what the header still says.
    """
    return [sample.picture.header.columns() for sample in samples]
