"""Attention of one new token per row to the row's cached keys and values.

A decoding step reads the whole cache once (48 GB at batch 64 of CogVLM), so what counts is the rate at which it is
read. `scaled_dot_product_attention` with a mask reads every row to the longest one's end; the Triton kernel reads each
row to its own end and keeps all arithmetic in registers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_cached(
    keys: Tensor, values: Tensor, lengths: Tensor, columns: int
) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """Attention over caches [layers, rows, kv heads, columns, d], first R rows; the new token is stored first."""
    count = len(lengths)
    rows = torch.arange(count, device=lengths.device)
    hidden = torch.arange(columns, device=lengths.device) > lengths[:, None]
    bias = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device)
    bias = bias.masked_fill_(hidden, float("-inf"))[:, None, None]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[layer][rows, :, lengths] = k
        values[layer][rows, :, lengths] = v
        # Query heads of one group are the query rows of their shared key head: no copy of keys for grouped queries.
        grouped = q.view(count, k.shape[1], -1, q.shape[-1])
        seen_k, seen_v = keys[layer, :count, :, :columns], values[layer, :count, :, :columns]
        return F.scaled_dot_product_attention(grouped, seen_k, seen_v, attn_mask=bias).flatten(1, 2)

    return attend
