"""ONNX models without denormal weights.

Training with weight decay leaves layers whose weights have shrunk below 1.2e-38: far too small to matter, but
processors compute with such numbers up to a hundred times slower. In PP-OCRv6's small detector two layers of them took
two thirds of the time on a Xeon (164 of 242 ms). onnxruntime can treat them as zero, but only for the thread that makes
the first session of a process, and for NumPy's arithmetic there as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

# Field numbers of onnx.proto.
GRAPH, NODE, INITIALIZER, ATTRIBUTE, TENSOR = 7, 1, 5, 5, 5
DATA_TYPE, RAW_DATA, FLOAT = 2, 9, 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def without_denormals(path: Path) -> bytes:
    """The model in the ONNX file `path`, every float32 weight of magnitude below 2**-126 set to zero."""
    model = bytearray(path.read_bytes())
    for start, end in _weights(model):
        weights = np.frombuffer(model, np.dtype("<f4"), (end - start) // 4, start)
        weights[np.abs(weights) < np.finfo(np.float32).tiny] = 0.0
    return bytes(model)


def _weights(model: bytearray) -> Iterator[tuple[int, int]]:
    """Where the raw float32 tensors lie: initializers and constants of the graph."""
    for graph in _inside(model, (0, len(model)), GRAPH):
        tensors = list(_inside(model, graph, INITIALIZER))
        for node in _inside(model, graph, NODE):
            for attribute in _inside(model, node, ATTRIBUTE):
                tensors += _inside(model, attribute, TENSOR)
        for tensor in tensors:
            if any(number == DATA_TYPE and value == FLOAT for number, value, _ in _fields(model, tensor)):
                yield from _inside(model, tensor, RAW_DATA)


def _inside(model: bytearray, span: tuple[int, int], wanted: int) -> Iterator[tuple[int, int]]:
    """Where the contents of the fields with this number lie in the message at `span`."""
    return ((start, end) for number, start, end in _fields(model, span) if number == wanted and end)


def _fields(model: bytearray, span: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of bytes in the message at `span`; number, value and 0 of each varint."""
    at, end = span
    while at < end:
        key, at = _varint(model, at)
        number, wire = key >> 3, key & 7
        value, at = _varint(model, at) if wire in (VARINT, BYTES) else (0, at)
        if wire == VARINT:
            yield number, value, 0
        elif wire == BYTES:
            yield number, at, at + value
            at += value
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"no ONNX model: wire type {wire} at byte {at}")


def _varint(model: bytearray, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = model[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
