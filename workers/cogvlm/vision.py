"""Picture to image features: EVA2-CLIP-E tower (Sun et al. 2023, arXiv:2303.15389) and the GLU adapter of CogVLM.

    pixels [I, 3, S, S]
      -> patches + CLS + positions     [I, 1+P, Hv]   P = (S / 14)^2
      -> transformer layers            [I, 1+P, Hv]   LayerNorm on each branch's output, not on its input
      -> without CLS                   [I, P, Hv]
      -> 2x2 convolution (CogVLM2)     [I, P/4, Hv]
      -> adapter                       [I, N, H]
      -> BOI, features, EOI            [I, N+2, H]

`dtype` is that of the matrices. Pixels, patch embedding, norms and the residual stream are float32 throughout.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from workers.cogvlm.config import Config, VisionConfig
from workers.cogvlm.sequence import upload

# Mean and standard deviation of CLIP's training pictures, RGB in 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# torch's default, and not the checkpoint's vision_config.layer_norm_eps: the reference passes none.
ADAPTER_NORM_EPS = 1e-5


def resize(rgb: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """`rgb` (H, W, 3) as a square of `side_px`, by Pillow's bicubic; the aspect ratio is not kept."""
    square = Image.fromarray(rgb).resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.asarray(square)


def normalize(squares: Tensor) -> Tensor:
    """uint8 squares [I, S, S, 3] to pixel values, float32 [I, 3, S, S]: 0..1, CLIP's mean off, CLIP's deviation one."""
    mean = upload(torch.tensor(CLIP_MEAN), squares.device).view(3, 1, 1)
    std = upload(torch.tensor(CLIP_STD), squares.device).view(3, 1, 1)
    return (squares.permute(0, 3, 1, 2).float() / 255 - mean) / std


class PatchEmbedding(nn.Module):
    """Patches by a strided convolution in full float32, CLS in front, a learnt embedding for every position."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=size, stride=size)
        self.cls_embedding = nn.Parameter(torch.empty(1, config.hidden_size))
        self.position_embedding = nn.Embedding(config.num_positions, config.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, 1+P, Hv], patches row by row."""
        # The convolution as a product: torch lets cuDNN round float32 convolutions to TF32, and no product.
        columns = F.unfold(pixels, self.proj.kernel_size, stride=self.proj.stride).transpose(1, 2)
        patches = F.linear(columns, self.proj.weight.flatten(1), self.proj.bias)
        cls = self.cls_embedding.expand(len(patches), 1, -1)
        embedded: Tensor = torch.cat((cls, patches), dim=1) + self.position_embedding.weight
        return embedded


class VisionAttention(nn.Module):
    """Full self-attention of the tower; the fused projection is laid out [3, heads, head_dim]."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, dtype=dtype)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[I, 1+P, Hv] -> [I, 1+P, Hv]."""
        qkv = self.query_key_value(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out: Tensor = self.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    """Two linears with the exact (erf) GELU between."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, dtype=dtype)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[I, 1+P, Hv] -> [I, 1+P, Hv]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class VisionLayer(nn.Module):
    """x += LN(attention(x)); x += LN(mlp(x))."""

    def __init__(self, config: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.attention = VisionAttention(config, dtype)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMLP(config, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[I, 1+P, Hv] -> [I, 1+P, Hv]."""
        x = x + self.input_layernorm(self.attention(x.to(self.dtype)).float())
        out: Tensor = x + self.post_attention_layernorm(self.mlp(x.to(self.dtype)).float())
        return out


class Merge(nn.Module):
    """CogVLM2's convolution: every block of 2 x 2 patches becomes one, by a kernel [Hv, Hv, 2, 2] with stride 2."""

    def __init__(self, width: int, grid: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.grid = grid
        self.weight = nn.Parameter(torch.empty(width, width, 2, 2, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[I, P, Hv], row by row -> [I, P/4, Hv]."""
        # A product, like the patch embedding: cuDNN would round a float32 convolution to TF32.
        blocks = x.view(len(x), self.grid // 2, 2, self.grid // 2, 2, -1)  # image, row, y, column, x, channel
        blocks = blocks.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
        return F.linear(blocks, self.weight.flatten(1), self.bias)


class Adapter(nn.Module):
    """From the tower's width to the decoder's, through a gated linear unit as wide as the decoder's MLP."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        hidden, inner = config.hidden_size, config.intermediate_size
        self.linear_proj = nn.Linear(config.vision.hidden_size, hidden, bias=False, dtype=dtype)
        self.norm1 = nn.LayerNorm(hidden, eps=ADAPTER_NORM_EPS)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False, dtype=dtype)
        self.down = nn.Linear(inner, hidden, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[I, N, Hv] -> [I, N, H]."""
        x = F.gelu(self.norm1(self.linear_proj(x.to(self.dtype)).float())).to(self.dtype)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Vision(nn.Module):
    """Tower, 2x2 convolution (CogVLM2), adapter, and the two learnt embeddings that enclose a picture."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        tower, width = config.vision, config.vision.hidden_size
        self.patch_embedding = PatchEmbedding(tower)
        self.layers = nn.ModuleList(VisionLayer(tower, dtype) for _ in range(tower.num_hidden_layers))
        self.conv = Merge(width, tower.grid, dtype) if config.second else None
        self.adapter = Adapter(config, dtype)
        self.boi = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.empty(1, 1, config.hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixel values [I, 3, S, S] -> image features [I, N+2, H], float32 both."""
        x = self.patch_embedding(pixels)
        for layer in self.layers:
            x = layer(x)
        x = x[:, 1:]
        if self.conv is not None:
            x = self.conv(x.to(self.dtype))
        x = self.adapter(x).float()
        return torch.cat((self.boi.expand(len(x), 1, -1), x, self.eoi.expand(len(x), 1, -1)), dim=1)
