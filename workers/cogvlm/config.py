"""A checkpoint folder, as far as it can be known without torch: config.json checked, its shards, its revision."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Names listed in an error; a wrong checkpoint may have thousands.
LISTED = 12
# Bytes of a tensor that `revision` reads at a time, and the longest header that safetensors itself allows.
PIECE = 64 << 10
MOST_HEADER = 100_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file, the key and what was expected."""


@dataclass(frozen=True)
class VisionConfig:
    """EVA2-CLIP-E tower. The published ones: 63 layers of width 1792, 16 heads, MLP 15360, patch 14."""

    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int  # px, the side of the square the picture is resized to
    patch_size: int  # px
    num_positions: int  # patches + 1 (CLS)
    in_channels: int
    layer_norm_eps: float
    hidden_act: str

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class Config:
    """Decoder and tower. `kv_heads < num_attention_heads` (grouped queries) and the 2x2 convolution mean CogVLM2."""

    vision: VisionConfig
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int  # context, tokens
    rms_norm_eps: float
    hidden_act: str
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    num_multi_query_heads: int | None = None  # only CogVLM2's config.json has it
    template_version: str = "chat"

    @property
    def second(self) -> bool:
        """Whether this is CogVLM2: grouped queries, 2x2 convolution, a bias on the vision expert's QKV."""
        return self.num_multi_query_heads is not None

    @property
    def kv_heads(self) -> int:
        """Key and value heads; equal to the query heads in CogVLM."""
        return self.num_multi_query_heads or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the decoder."""
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        """Rows of one expert's fused query-key-value matrix: Q, then K, then V."""
        return (self.num_attention_heads + 2 * self.kv_heads) * self.head_dim

    @property
    def rope_base(self) -> float:
        """Base of the rotary angles: 10000 (Vicuna) or 500000 (Llama 3). No published config.json states it."""
        return 500_000.0 if self.second else 10_000.0

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture in the sequence, BOI and EOI included: 1227 at 490 px, 2306 at 1344 px (CogVLM2)."""
        side = self.vision.grid // 2 if self.second else self.vision.grid
        return side * side + 2


def read_config(folder: Path) -> Config:
    """The configuration in `folder`/config.json. Raises CheckpointError that names each missing or impossible field."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give the one that holds config.json and the weights")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder has config.json beside its weights") from None
    except OSError as failure:
        raise CheckpointError(f"{path}: cannot be read: {failure.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as failure:
        raise CheckpointError(f"{path}: no valid JSON: {failure}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("vision_config"), dict):
        named = raw.get("architectures") if isinstance(raw, dict) else None
        raise CheckpointError(f"{path}: no `vision_config`, so this is no CogVLM checkpoint (architectures: {named})")
    vision = VisionConfig(**_take(path, raw["vision_config"], VisionConfig, "vision_config."))
    config = Config(vision=vision, **_take(path, raw, Config, ""))
    _check(path, config)
    return config


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as its index lists them. Raises CheckpointError for a missing one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({Path(name).name for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as failure:
            raise CheckpointError(f"{index}: no index of safetensors shards: {failure!r}") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{index}: {len(missing)} of {len(names)} shards are missing: {some(missing)}")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: no *.safetensors file; other formats (*.bin, *.pt) are not read")
    return files


def revision(weights: Path) -> str:
    """Revision of a checkpoint without loading it: the commit of a hub snapshot folder, otherwise a content hash.

    The hash covers config.json and, of each shard, its length, its header and 64 KiB from the start and from the middle
    of every tensor: at most 128 KiB a tensor. A change that leaves both of these pieces alone is not seen. Raises
    CheckpointError for a shard without a safetensors header.
    """
    snapshot = weights.resolve()
    if snapshot.parent.name == "snapshots" and len(snapshot.name) == 40:
        return snapshot.name[:12]
    digest = hashlib.sha256((weights / "config.json").read_bytes() if (weights / "config.json").is_file() else b"")
    for file in shard_files(weights):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(length, MOST_HEADER))
            digest.update(header)
            try:
                tensors = {
                    name: entry["data_offsets"] for name, entry in json.loads(header).items() if name[:2] != "__"
                }
                spans = sorted((int(begin), int(end)) for begin, end in tensors.values())
            except (ValueError, KeyError, TypeError, AttributeError) as failure:
                raise CheckpointError(f"{file}: no safetensors header ({failure!r}); fetch it again") from None
            for begin, end in spans:
                # One piece for a tensor of up to two; two where the middle does not touch the start.
                size = end - begin
                pieces = ((0, size),) if size <= 2 * PIECE else ((0, PIECE), (size // 2, PIECE))
                for offset, count in pieces:
                    stream.seek(8 + length + begin + offset)
                    digest.update(stream.read(count))
    return digest.hexdigest()[:12]


def some(names: list[str], separator: str = ", ") -> str:
    """The first names of a long list, and how many more there are."""
    more = len(names) - LISTED
    return separator.join(names[:LISTED]) + (f"{separator}and {more} more" if more > 0 else "")


def _take(path: Path, raw: dict[str, Any], kind: type, prefix: str) -> dict[str, Any]:
    """The fields of the dataclass `kind` out of `raw`; fields that the model does not use are passed over."""
    wanted = {f.name: f for f in fields(kind) if f.name != "vision"}
    optional = {"num_multi_query_heads", "template_version"}
    raw = {name: value for name, value in raw.items() if value is not None or name not in optional}
    missing = [prefix + name for name in wanted if name not in raw and name not in optional]
    if missing:
        raise CheckpointError(
            f"{path}: missing {', '.join(missing)}; this is not the config.json of CogVLM or CogVLM2"
            f" (architectures: {raw.get('architectures')})"
        )
    taken: dict[str, Any] = {}
    for name, field in wanted.items():
        if name not in raw:
            continue
        value, type_name = raw[name], str(field.type)
        known = {"str": (str,), "float": (int, float)}.get(type_name, (int,))
        if not isinstance(value, known) or isinstance(value, bool):
            raise CheckpointError(f"{path}: {prefix}{name} is {value!r}, expected {type_name}")
        if not isinstance(value, str) and (value < 0 if name.endswith("_id") else value <= 0):
            raise CheckpointError(f"{path}: {prefix}{name} is {value!r}, expected a positive number")
        taken[name] = value
    return taken


def _check(path: Path, config: Config) -> None:
    vision, side = config.vision, config.vision.grid
    impossible = {
        f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads}": (
            config.hidden_size % config.num_attention_heads
        ),
        f"head width {config.head_dim} is odd, and rotary embeddings turn pairs": config.head_dim % 2,
        f"num_attention_heads {config.num_attention_heads} is no multiple of num_multi_query_heads {config.kv_heads}": (
            config.num_attention_heads % config.kv_heads
        ),
        f"vision_config.hidden_size {vision.hidden_size} is no multiple of num_heads {vision.num_heads}": (
            vision.hidden_size % vision.num_heads
        ),
        f"vision_config.image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}": (
            vision.image_size % vision.patch_size
        ),
        f"vision_config.num_positions is {vision.num_positions}, the {side} x {side} patches need {side * side + 1}": (
            vision.num_positions != side * side + 1
        ),
        f"{side} x {side} patches do not divide into the 2x2 blocks of CogVLM2": config.second and side % 2,
        f"a special token is outside the vocabulary of {config.vocab_size}": (
            max(config.pad_token_id, config.bos_token_id, config.eos_token_id) >= config.vocab_size
        ),
        f"hidden_act is {config.hidden_act!r}; the decoder has 'silu'": config.hidden_act != "silu",
        f"vision_config.hidden_act is {vision.hidden_act!r}; the tower has 'gelu'": vision.hidden_act != "gelu",
        f"vision_config.in_channels is {vision.in_channels}; pictures have 3": vision.in_channels != 3,
        f"template_version is {config.template_version!r}; known are base, chat and vqa": (
            config.template_version not in ("base", "chat", "vqa")
        ),
    }
    found = [text for text, wrong in impossible.items() if wrong]
    if found:
        raise CheckpointError(f"{path}: {'; '.join(found)}")
