"""Triton kernel: one query token per row against the row's own keys, softmax carried along (Milakov & Gimelshein 2018).

One program a (row, query head) walks the keys in blocks. There is one query only, so the products are sums over a
block in registers: matrix units would idle, and the memory is what is waited for. Importing this needs triton.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]  # no stubs, and not on every machine
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

# Keys per block: 64 x 128 float32 values are 64 registers in each of 128 threads, for keys and again for values.
BLOCK = 64


@triton.jit  # type: ignore[untyped-decorator,misc,unused-ignore]
def _attend(  # type: ignore[no-untyped-def]  # noqa: ANN202  (Triton's language has no types)
    q, k, v, lengths, out, scale,  # noqa: ANN001
    q_row, q_head, k_row, k_head, k_column, v_row, v_head, v_column, out_row, out_head,  # noqa: ANN001
    group: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length = tl.load(lengths + row)
    lane, offset = tl.arange(0, padded), tl.arange(0, block)
    inside = lane < width
    query = tl.load(q + row * q_row + head * q_head + lane, mask=inside, other=0.0).to(tl.float32) * scale
    k += row * k_row + (head // group) * k_head
    v += row * v_row + (head // group) * v_head
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((padded,), tl.float32)
    for start in range(0, length, block):
        column = start + offset
        real = column < length
        wanted = real[:, None] & inside[None, :]
        keys = tl.load(k + column[:, None] * k_column + lane[None, :], mask=wanted, other=0.0).to(tl.float32)
        score = tl.where(real, tl.sum(keys * query[None, :], 1), float("-inf"))
        peak = tl.maximum(largest, tl.max(score, 0))
        share = tl.exp(score - peak)
        shrink = tl.exp(largest - peak)
        values = tl.load(v + column[:, None] * v_column + lane[None, :], mask=wanted, other=0.0).to(tl.float32)
        mixed = mixed * shrink + tl.sum(share[:, None] * values, 0)
        total = total * shrink + tl.sum(share, 0)
        largest = peak
    mixed = (mixed / total).to(out.dtype.element_ty)
    tl.store(out + row * out_row + head * out_head + lane, mixed, mask=inside)


def attend_rows(q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Attention of q [R, heads, d] to the first lengths[r] of keys and values [R, kv heads, columns, d]."""
    rows, heads, width = q.shape
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend[(rows, heads)](
        q, keys, values, lengths, out, width**-0.5,
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), keys.stride(2),
        values.stride(0), values.stride(1), values.stride(2), out.stride(0), out.stride(1),
        group=heads // keys.shape[1], width=width, padded=triton.next_power_of_2(width), block=BLOCK, num_warps=4,
    )  # fmt: skip
    return out
