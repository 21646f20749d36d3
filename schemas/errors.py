"""The stable words for what can go wrong with one row or one shard (docs/errors.md lists them)."""

from __future__ import annotations

from typing import Any

ROW_ERRORS: dict[str, str] = {
    "empty": "the image column is null or has no bytes",
    "not_an_image": "the bytes are no picture in any known format",
    "unsupported_format": "a picture, but in a format that is not on the allow-list",
    "too_large": "more pixels than decode.max_megapixels; refused before decoding",
    "truncated": "the file ends before the picture does",
    "corrupt": "the picture's data is damaged",
    "missing_file": "the path in the row names no file",
    "outside_input": "the path in the row leads out of input.root",
    "remote_url": "the row names a web address; curate never fetches from the web",
    "unreadable": "the shard's storage could not read this row",
    "timeout": "the row took an operator longer than engine.batch_timeout_s",
    "out_of_memory": "the row alone does not fit in memory",
    "worker_crash": "the row killed the worker process",
    "prompt_too_long": "the prompt has more tokens than the model's context",
    "endpoint_failed": "the caption or translation endpoint refused the row or gave no answer in all tries",
    "operator_failed": "the operator raised an exception; the message has its class and text",
}

SHARD_ERRORS: dict[str, str] = {
    "shard_unreadable": "the file is no readable shard",
    "no_image_column": "no column holds pictures; name it with input.image_column",
    "shard_changed": "the shard is not the file that was scored before",
    "part_damaged": "a part of the shard in the store does not read; forget the shard and run again",
    "column_type": "a column that the policy reads has a type that does not fit the first shard's",
    "too_many_crashes": "more rows killed a worker than engine.max_crashes_per_shard allows",
    "shard_crash": "reading or publishing the shard killed the worker process",
}


class RowError(Exception):
    """One row failed, for a reason that has a stable word.

    `columns` holds what could still be measured and is written beside the error.
    """

    def __init__(self, code: str, message: str, columns: dict[str, Any] | None = None) -> None:
        if code not in ROW_ERRORS:
            raise ValueError(f"{code!r} is not a row error; add it to schemas/errors.py")
        message = message.encode("utf-8", "replace").decode()  # a lone surrogate would stop the part from being written
        super().__init__(message)
        self.code = code
        self.message = message
        self.columns = columns or {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.code, self.message, self.columns)
