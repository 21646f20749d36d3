"""What a worker sees of one row: its bytes, its picture decoded once, and the columns known so far."""

from __future__ import annotations

from typing import Any

from schemas.errors import RowError
from workers.picture import Limits, Picture, decode


class Sample:
    """One row on its way through the operators.

    `data` are the original bytes, or a RowError that says why there are none (operators that need no picture get
    None). `values` are the columns that earlier operators wrote for this row.
    """

    __slots__ = ("_picture", "data", "limits", "row", "values")

    def __init__(
        self, row: int, data: bytes | RowError | None, values: dict[str, Any], limits: Limits | None = None
    ) -> None:
        self.row = row
        self.data = data
        self.values = values
        self.limits = limits or Limits()
        self._picture: Picture | RowError | None = None

    @property
    def bytes(self) -> bytes:
        """The original bytes; raises RowError when there are none."""
        if isinstance(self.data, RowError):
            raise self.data
        if not self.data:
            raise RowError("empty", "the row has no image bytes")
        return self.data

    @property
    def picture(self) -> Picture:
        """The decoded picture, decoded on first use and kept; raises RowError when it cannot be decoded."""
        if self._picture is None:
            try:
                self._picture = decode(self.bytes, self.limits)
            except RowError as failure:
                self._picture = failure
        if isinstance(self._picture, RowError):
            raise self._picture
        return self._picture

    @property
    def decodes(self) -> bool:
        """Whether the bytes are a picture that decodes."""
        try:
            return bool(self.picture)
        except RowError:
            return False

    def release(self) -> None:
        """Let go of bytes and pixels; the columns stay."""
        self.data = None
        self._picture = None
