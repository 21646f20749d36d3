"""Thrift's compact protocol, as far as the page headers and footers of Parquet need it.

A struct is a dict: number of the field -> (type, value). Lists are (type of the items, [items]). What was read is
written again byte for byte. Source: thrift-compact-protocol.md of Apache Thrift.
"""

from __future__ import annotations

import struct
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
WHOLE = (I16, I32, I64)
_BYTE = [bytes([value]) for value in range(256)]

Struct = dict[int, tuple[int, Any]]


def read(data: bytes | memoryview, at: int = 0) -> tuple[Struct, int]:
    """The struct that begins at `at`, and where it ends; IndexError or ValueError when there is none."""
    fields: Struct = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            delta, at = varint(data, at)
            number = _signed(delta)
        if kind in (TRUE, FALSE):
            fields[number] = kind, kind == TRUE
        else:
            value, at = _value(data, at, kind)
            fields[number] = kind, value
    return fields, at + 1


def write(fields: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    before = 0
    for number, (kind, value) in sorted(fields.items()):
        if kind in (TRUE, FALSE):
            kind = TRUE if value else FALSE
        if 0 < number - before < 16:
            out.append(number - before << 4 | kind)
        else:
            out.append(kind)
            out += _number(_zigzag(number))
        before = number
        if kind not in (TRUE, FALSE):
            out += _bytes(kind, value)
    return bytes(out) + b"\0"


def _value(data: bytes | memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in WHOLE:
        value, at = varint(data, at)
        return _signed(value), at
    if kind == BINARY:
        size, at = varint(data, at)
        if at + size > len(data):
            raise IndexError("a string ends beyond the data")
        return bytes(data[at : at + size]), at + size
    if kind == STRUCT:
        return read(data, at)
    if kind in (LIST, SET):
        size, of = data[at] >> 4, data[at] & 15
        at += 1
        if size == 15:
            size, at = varint(data, at)
        items = []
        for _ in range(size):
            item, at = _value(data, at, of)
            items.append(item)
        return (of, items), at
    if kind in (TRUE, FALSE, BYTE):  # an item of a list; or a byte
        return data[at], at + 1
    if kind == DOUBLE:
        return struct.unpack_from("<d", data, at)[0], at + 8
    raise ValueError(f"type {kind} of Thrift is not used by Parquet")


def _bytes(kind: int, value: Any) -> bytes:
    if kind in WHOLE:
        return _number(_zigzag(value))
    if kind == BINARY:
        text: bytes = value
        return _number(len(text)) + text
    if kind == STRUCT:
        return write(value)
    if kind in (LIST, SET):
        of, items = value
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + _number(len(items))
        return head + b"".join(_bytes(of, item) for item in items)
    if kind in (TRUE, FALSE, BYTE):
        return bytes([value])
    return struct.pack("<d", float(value))


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where it ends."""
    byte = data[at]
    value, shift = byte & 127, 0
    while byte > 127:
        at += 1
        shift += 7
        byte = data[at]
        value |= (byte & 127) << shift
    return value, at + 1


def _number(value: int) -> bytes:
    if value < 128:
        return _BYTE[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1
