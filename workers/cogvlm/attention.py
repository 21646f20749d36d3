"""Attention of one new token per row to the row's cached keys and values.

torch's own attention with a mask: it reads every row of the cache up to the end of the longest one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (layer, q [T, heads, d], k [T, kv heads, d], v [T, kv heads, d]) -> [T, heads, d]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def attend_cached(keys: Tensor, values: Tensor, lengths: Tensor, columns: int) -> Attend:
    """Attention over caches [layers, rows, kv heads, columns, d], first R rows; the new token is stored first.

    `lengths` [R] are the tokens cached so far; only the first `columns` of the cache are looked at.
    """
    count = len(lengths)
    rows = torch.arange(count, device=lengths.device)
    bias = _bias(lengths, columns, keys.dtype)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[layer][rows, :, lengths] = k
        values[layer][rows, :, lengths] = v
        seen_k, seen_v = keys[layer, :count, :, :columns], values[layer, :count, :, :columns]
        # Query heads of one group are the query rows of their shared key head: no copy of keys for grouped queries.
        grouped = q.view(count, k.shape[1], -1, q.shape[-1])
        return F.scaled_dot_product_attention(grouped, seen_k, seen_v, attn_mask=bias).flatten(1, 2)

    return attend


def _bias(lengths: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """0 for a column that holds a token or receives the new one, minus infinity after it: [R, 1, 1, columns]."""
    beyond = torch.arange(columns, device=lengths.device) > lengths[:, None]
    bias = torch.zeros(beyond.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(beyond, float("-inf"))[:, None, None]
