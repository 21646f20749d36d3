"""8-bit weights for the decoder's matrices: int8 or fp8 (e4m3) with one float32 scale an output row.

Weights only: activations stay as they are, and a matrix is widened when it multiplies. Memory of the decoder halves
against bf16, which leaves more of the card to the cache; the price in quality stands in docs/cogvlm.md. The tower, the
adapter, the embeddings and the head stay as they are: 26.6 % of CogVLM's parameters. Tower and adapter are read once a
picture, the head at every step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.cogvlm.decoder import Expert, Model

# Storage type and the largest magnitude it is scaled to.
FORMATS: dict[str, tuple[torch.dtype, float]] = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


class QuantLinear(nn.Module):
    """y = (x W^T) * scale + bias, with W in 8 bits."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        dtype, self.limit = FORMATS[kind]
        device = linear.weight.device
        self.register_buffer("weight", torch.empty(linear.weight.shape, dtype=dtype, device=device))
        self.register_buffer("scale", torch.empty(linear.out_features, dtype=torch.float32, device=device))
        self.bias = linear.bias

    def store(self, rows: slice, weight: Tensor) -> None:
        """Quantise `weight` into `rows`: symmetric, the row's largest magnitude becomes the format's."""
        wide = weight.float()
        scale = (wide.abs().amax(1) / self.limit).clamp_min(torch.finfo(torch.float32).tiny)
        scaled = wide / scale[:, None]
        if self.weight.dtype == torch.int8:
            scaled.round_()
        self.weight[rows] = scaled.to(self.weight.dtype)
        self.scale[rows] = scale

    def forward(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out]."""
        y = (F.linear(x, self.weight.to(x.dtype)) * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize(model: Model, kind: str) -> None:
    """Replace every expert's matrices by 8-bit ones, still without values (`QuantLinear.store` fills them)."""
    for expert in [module for module in model.modules() if isinstance(module, Expert)]:
        for name in ("qkv", "dense", "gate_up", "down"):
            setattr(expert, name, QuantLinear(getattr(expert, name), kind))
