"""Token embeddings to logits: the decoder whose every layer has a vision and a language expert.

    h = h + dense(attention(rotary(qkv(RMSNorm(h)))))
    h = h + down(silu(gate(RMSNorm(h))) * up(RMSNorm(h)))

qkv, dense and the MLP exist twice (arXiv:2311.03079, section 2.2): BOI and patches pass through the vision expert's,
everything else through the language expert's. Attention is one, plainly causal, over both. Tokens arrive packed in
expert order (sequence.py), so that each expert's share is a slice. A generated token meets the language expert only:
a decoding step reads half of the decoder's weights. `dtype` is that of matrices and cache; norms, rotary angles and the
residual stream h are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.cogvlm.attention import Attend, attend_cached
from workers.cogvlm.config import Config
from workers.cogvlm.sequence import Packing
from workers.cogvlm.vision import Vision

Map = Callable[[Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, from the float32 residual stream to the matrices' dtype."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(self.dtype)


def inverse_frequencies(head_dim: int, base: float) -> Tensor:
    """Rotary angle per position of each of the d/2 pairs: base^(-2j/d), float32."""
    return 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


class Rotary(nn.Module):
    """Rotary embeddings (Su et al. 2021) over the whole head; the pairs are (j, j + d/2).

    `inv_freq` is float32 for exact angles. In bfloat16 it reproduces the reference cast to bf16, where the position,
    the frequency, their product and its cosine are each rounded: at position 257 a cosine is off by up to 0.86.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(head_dim, base), persistent=False)

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [T, 1, d/2], at integer positions [T]."""
        angles = positions.to(self.inv_freq.dtype)[:, None, None] * self.inv_freq
        return angles.cos().float(), angles.sin().float()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn x [T, heads, d] by the table's angles."""
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


class Expert(nn.Module):
    """One expert's matrices in one layer. Q, K and V are fused as in the checkpoint, gate and up at loading."""

    def __init__(self, config: Config, dtype: torch.dtype, qkv_bias: bool) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.qkv = nn.Linear(hidden, config.qkv_size, bias=qkv_bias, dtype=dtype)
        self.dense = nn.Linear(hidden, hidden, bias=False, dtype=dtype)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False, dtype=dtype)
        self.down = nn.Linear(inner, hidden, bias=False, dtype=dtype)

    def mlp(self, x: Tensor) -> Tensor:
        """down(silu(gate(x)) * up(x))."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


def route(x: Tensor, vision: int, by_vision: Map, by_language: Map) -> Tensor:
    """x[:vision] through the one, the rest through the other."""
    if vision == 0:
        return by_language(x)
    return torch.cat((by_vision(x[:vision]), by_language(x[vision:])))


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        self.index = index
        self.split = [config.num_attention_heads, config.kv_heads, config.kv_heads]
        self.head_dim = config.head_dim
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.vision = Expert(config, dtype, qkv_bias=config.second)
        self.language = Expert(config, dtype, qkv_bias=False)

    def forward(self, x: Tensor, vision: int, rotary: Rotary, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """Packed tokens [T, H] -> [T, H]."""
        seen, said = self.vision, self.language
        qkv = route(self.input_layernorm(x), vision, seen.qkv, said.qkv)
        q, k, v = torch.split(qkv.view(len(x), -1, self.head_dim), self.split, dim=1)
        mixed = attend(self.index, rotary(q, *table), rotary(k, *table), v).flatten(1)
        x = x + route(mixed, vision, seen.dense, said.dense)
        return x + route(self.post_attention_layernorm(x), vision, seen.mlp, said.mlp)


class Cache:
    """Keys and values of `rows` sequences, allocated once: [layers, rows, kv heads, columns, head_dim] each.

    A row begins at column 0 and has a length of its own, so a finished sequence is replaced by writing another over
    it. Zeros at first: a masked column has weight 0, and 0 times what uninitialised memory may hold is not 0.
    """

    def __init__(self, config: Config, rows: int, columns: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (config.num_hidden_layers, rows, config.kv_heads, columns, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.rows = rows
        self.columns = columns

    @staticmethod
    def bytes_per_token(config: Config, dtype: torch.dtype) -> int:
        """Keys and values of one token in all layers: 524,288 B for CogVLM in bf16, 131,072 B for CogVLM2."""
        return 2 * config.num_hidden_layers * config.kv_heads * config.head_dim * dtype.itemsize

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.k[:, target] = self.k[:, source]
        self.v[:, target] = self.v[:, source]


class Model(nn.Module):
    """CogVLM or CogVLM2: vision tower, decoder, output head."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.vision = Vision(config, dtype)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=dtype)
        self.rotary = Rotary(config.head_dim, config.rope_base)
        self.layers = nn.ModuleList(Layer(config, dtype, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def embed(self, input_ids: Tensor, packing: Packing, pixels: Tensor | None) -> Tensor:
        """Packed decoder input, float32 [T, H]: token embeddings, features in place of image tokens, row by row."""
        x: Tensor = self.embed_tokens(input_ids.flatten()[packing.source]).float()
        if pixels is not None:
            x[packing.image] = self.vision(pixels).flatten(0, 1)
        return x

    def decode(self, x: Tensor, vision: int, positions: Tensor, attend: Attend) -> Tensor:
        """Packed tokens [T, H] through all layers and the final norm."""
        table = self.rotary.table(positions)
        for layer in self.layers:
            x = layer(x, vision, self.rotary, table, attend)
        out: Tensor = self.norm(x)
        return out

    def forward(self, input_ids: Tensor, packing: Packing, pixels: Tensor | None = None) -> Tensor:
        """Logits [T, V] of every token of a padded batch [B, L], packed, without a cache."""
        hidden = self.decode(self.embed(input_ids, packing, pixels), packing.vision, packing.positions, causal(packing))
        logits: Tensor = self.lm_head(hidden)
        return logits

    def prefill(self, input_ids: Tensor, packing: Packing, pixels: Tensor | None, cache: Cache, rows: Tensor) -> Tensor:
        """Logits [B, V] after the last token of each sequence; keys and values go to the cache's `rows` [B]."""
        attend = causal(packing, cache, rows)
        hidden = self.decode(self.embed(input_ids, packing, pixels), packing.vision, packing.positions, attend)
        logits: Tensor = self.lm_head(hidden[packing.last])
        return logits

    def step(self, tokens: Tensor, positions: Tensor, lengths: Tensor, cache: Cache, columns: int) -> Tensor:
        """Logits [R, V] after one more token in each of the cache's first R rows; only the language expert is read.

        `lengths` [R] are the tokens already in the cache, `positions` [R] the rotary positions of the new ones.
        Attention looks at the first `columns` of the cache, which must exceed every length.
        """
        attend = attend_cached(cache.k, cache.v, lengths, columns)
        hidden = self.decode(self.embed_tokens(tokens).float(), 0, positions, attend)
        logits: Tensor = self.lm_head(hidden)
        return logits


def causal(packing: Packing, cache: Cache | None = None, rows: Tensor | None = None) -> Attend:
    """Causal attention of a packed batch; with a cache, the keys and values are stored in its `rows` on the way."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = packing.spread(q), packing.spread(k), packing.spread(v)
        if cache is not None:
            cache.k[layer][rows, :, : packing.columns] = k
            cache.v[layer][rows, :, : packing.columns] = v
        grouped = q.shape[1] != k.shape[1]
        return packing.collect(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped))

    return attend
