"""One CLIP or SigLIP embedding a picture, and what follows from it: aesthetic heads, concepts, caption similarity.

    embeds = Embedder(OpenClip(Path("open_clip_model.safetensors")))
    vectors = embeds.images(samples)                  # (n, d) float32, unit length

The model is loaded once a process (`opened`), and the embedding of a picture is computed once for all operators that
ask for it in turn: the last ones are kept by content.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import RowError
from workers.picture import decode
from workers.sample import Sample
from workers.sentences import sentences
from workers.spans import is_mostly_han

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1

Vectors = npt.NDArray[np.float32]

KEPT = 4096  # embeddings that stay for the next operator: 12 MB at 768 numbers
ROWS = 64  # pictures that go through the model together
CONCEPTS = Path(__file__).parent / "concepts"
# Linear layers of a head by number, and what they belong to. Without activations between them they are one affine map.
HEADS = {(): "LAION v1", (0, 2, 4, 6, 7): "LAION v2", (0, 2, 4, 6, 8): "v2.5 for SigLIP"}


class WeightsError(ValueError):
    """Weights or a data file that cannot be used; the message names the file and what is wrong."""


class Backbone(Protocol):
    """A model that embeds pictures and, if it can, texts. `pixels` runs on any thread, the others on one."""

    device: str

    def pixels(self, rgb: npt.NDArray[np.uint8]) -> Tensor: ...
    def images(self, pixels: Tensor) -> Tensor: ...
    def texts(self, texts: Sequence[str]) -> Tensor: ...


class OpenClip:
    """A model of open_clip from a local file, or from a folder with open_clip_config.json; nothing is downloaded.

    `architecture` names one of open_clip's own configurations, or a JSON file in its form. OpenAI's weights were
    trained with QuickGELU: `ViT-L-14-quickgelu`, and never `ViT-L-14`, with which embeddings are silently off.
    """

    def __init__(
        self, weights: Path, architecture: str = "ViT-L-14-quickgelu", dtype: str = "float32", device: str = "auto"
    ) -> None:
        import open_clip
        import torch

        self.device = _device(device)
        name = architecture
        if weights.is_dir():
            name = f"local-dir:{weights}"
        elif architecture.endswith(".json"):
            if not Path(architecture).is_file():
                raise WeightsError(f"{architecture}: no such file")
            open_clip.add_model_config(Path(architecture))
            name = Path(architecture).stem
        precision = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}[dtype]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, _, transform = open_clip.create_model_and_transforms(
                    name, pretrained=None if weights.is_dir() else str(weights), precision=precision,
                    device=self.device, require_pretrained=True,
                )  # fmt: skip
            self._tokenize = open_clip.get_tokenizer(name)
        except Exception as why:  # open_clip raises RuntimeError, ValueError, safetensors' and pickle's errors
            text = str(why).splitlines()[0] if str(why) else type(why).__name__
            raise WeightsError(f"{weights}: open_clip cannot load it as {architecture}: {text}") from None
        self._model = model.eval().requires_grad_(False)
        self._transform = transform
        self._dtype = getattr(torch, dtype)

    def pixels(self, rgb: npt.NDArray[np.uint8]) -> Tensor:
        """open_clip's own: short side bicubic, centre crop, mean and deviation. (H, W, 3) -> [3, S, S]."""
        from PIL import Image

        pixels: Tensor = self._transform(Image.fromarray(rgb))
        return pixels

    def images(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, d], not normalised."""
        features: Tensor = self._model.encode_image(pixels.to(self._dtype))
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, d], not normalised. Of a text longer than the context (77 tokens) the rest is not seen."""
        features: Tensor = self._model.encode_text(self._tokenize(list(texts)).to(self.device))
        return features


class Siglip:
    """SigLIP's vision tower by transformers, from a folder with config.json and model.safetensors; pictures alone."""

    def __init__(self, weights: Path, dtype: str = "float32", device: str = "auto") -> None:
        import torch
        from transformers import AutoImageProcessor, SiglipVisionModel

        self.device = _device(device)
        self._dtype = getattr(torch, dtype)
        try:
            # The head was trained behind Pillow's resizing; torchvision's shifts scores by some hundredths.
            self._processor = AutoImageProcessor.from_pretrained(str(weights), local_files_only=True, backend="pil")
            model = SiglipVisionModel.from_pretrained(
                str(weights), local_files_only=True, use_safetensors=True, dtype=self._dtype
            )
        except (OSError, ValueError, RuntimeError) as why:
            raise WeightsError(f"{weights}: no SigLIP that transformers can load: {str(why).splitlines()[0]}") from None
        moved: Any = model
        self._model = moved.to(self.device).eval().requires_grad_(False)

    def pixels(self, rgb: npt.NDArray[np.uint8]) -> Tensor:
        """The processor's resizing and scaling. (H, W, 3) -> [3, S, S]."""
        pixels: Tensor = self._processor(images=rgb, return_tensors="pt")["pixel_values"][0]
        return pixels

    def images(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, d], not normalised."""
        features: Tensor = self._model(pixel_values=pixels.to(self._dtype)).pooler_output
        return features

    def texts(self, texts: Sequence[str]) -> Tensor:
        """SigLIP's text tower is not loaded."""
        raise NotImplementedError


class Embedder:
    """Pictures and texts to unit vectors; pictures are decoded by threads while the model works on earlier ones."""

    def __init__(self, backbone: Backbone, *, rows: int = ROWS, threads: int = 4) -> None:
        self.backbone = backbone
        self.rows = rows
        self.threads = threads
        self.computed = 0
        """Pictures that went through the model."""
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()

    def images(self, samples: Sequence[Sample]) -> Vectors:
        """Unit vectors (n, d). Raises RowError for the first picture that does not decode; the others are kept."""
        keys = [hashlib.sha256(sample.bytes).digest() for sample in samples]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        todo = {key: sample for key, sample in zip(keys, samples, strict=True) if key not in found}
        failures: dict[bytes, RowError] = {}
        found |= self._embed(todo, failures)
        self._kept |= found
        while len(self._kept) > max(KEPT, len(samples)):
            self._kept.popitem(last=False)
        for key in keys:
            if key in failures:
                raise failures[key]
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors (n, d)."""
        import torch

        with torch.inference_mode():
            parts = [
                _unit(self.backbone.texts(texts[start : start + self.rows]))
                for start in range(0, len(texts), self.rows)
            ]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def _embed(self, todo: dict[bytes, Sample], failures: dict[bytes, RowError]) -> dict[bytes, Vectors]:
        import torch

        good: list[bytes] = []
        waiting: list[Tensor] = []
        parts: list[Tensor] = []

        def launch() -> None:
            batch = torch.stack(waiting)
            if self.backbone.device.startswith("cuda"):
                batch = batch.pin_memory().to(self.backbone.device, non_blocking=True)
            features = self.backbone.images(batch).float()
            parts.append(features / features.norm(dim=-1, keepdim=True))
            waiting.clear()

        with ThreadPoolExecutor(self.threads) as pool, torch.inference_mode():
            coming = {key: pool.submit(self._pixels, sample) for key, sample in todo.items()}
            for key in list(coming):
                try:
                    waiting.append(coming.pop(key).result())
                except RowError as failure:
                    failures[key] = failure
                    continue
                good.append(key)
                if len(waiting) == self.rows:
                    launch()
            if waiting:
                launch()
        self.computed += len(good)
        vectors = torch.cat(parts).cpu().numpy() if parts else np.zeros((0, 0), np.float32)
        for key, vector in zip(good, vectors, strict=True):
            if not np.isfinite(vector).all():
                failures[key] = RowError("operator_failed", "the embedding is not finite; try embed.dtype float32")
        return {key: vector for key, vector in zip(good, vectors, strict=True) if key not in failures}

    def _pixels(self, sample: Sample) -> Tensor:
        # Not sample.picture, which would keep every full-size picture of the batch in memory.
        return self.backbone.pixels(decode(sample.bytes, sample.limits).rgb)


@lru_cache(maxsize=2)
def opened(make: Callable[..., Backbone], *arguments: Any) -> Embedder:
    """The embedder of `make(*arguments)`, loaded once in this process and shared by the operators that use it."""
    return Embedder(make(*arguments))


class Embed:
    """The `embed` operator: the embedding itself, in half precision."""

    def __init__(self, embedder: Embedder, model: str, revision: str) -> None:
        self.embedder = embedder
        self.model = model
        self.revision = revision

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        vectors = self.embedder.images(samples).astype(np.float16)
        return [
            {"embedding": vector, "embedding_model": self.model, "embedding_revision": self.revision}
            for vector in vectors
        ]


class Aesthetic:
    """The `aesthetic` operator by a learned head on the embedding; `engine` is written beside the score."""

    def __init__(self, embedder: Embedder, head: Path, engine: str) -> None:
        self.embedder = embedder
        self.weight, self.bias = fold(head)
        self.engine = engine

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        vectors = self.embedder.images(samples).astype(np.float64)
        if vectors.shape[-1] != len(self.weight):
            raise WeightsError(f"the head takes {len(self.weight)} numbers, the embedding has {vectors.shape[-1]}")
        scores = vectors @ self.weight + self.bias
        return [{"aesthetic": float(score), "aesthetic_engine": self.engine} for score in scores]


def fold(head: Path) -> tuple[npt.NDArray[np.float64], float]:
    """A head's linear layers as one affine map (weight [d], bias), in float64.

    The published v2 and v2.5 have no activation between their layers, and dropout does nothing when scoring. A file
    with layers of other numbers (the ReLU variant has 0, 3, 6, 9, 11) is refused: it is not affine.
    """
    layers: dict[int | None, dict[str, npt.NDArray[np.float64]]] = {}
    for name, tensor in _tensors(head).items():
        *path, kind = name.split(".")
        number = int(path[-1]) if path and path[-1].isdigit() else None
        if kind not in ("weight", "bias") or (path and number is None):
            raise WeightsError(f"{head}: {name} belongs to no aesthetic head")
        layers.setdefault(number, {})[kind] = tensor
    numbers = tuple(sorted(number for number in layers if number is not None))
    if numbers not in HEADS or any(set(layer) != {"weight", "bias"} for layer in layers.values()):
        raise WeightsError(f"{head}: layers {list(numbers)} are no known aesthetic head ({', '.join(HEADS.values())})")
    (weight, bias), *rest = [(layers[n]["weight"], layers[n]["bias"]) for n in numbers or (None,)]
    for w, b in rest:
        if w.ndim != 2 or w.shape[1] != weight.shape[0]:
            raise WeightsError(f"{head}: a layer of {list(w.shape)} follows one with {weight.shape[0]} outputs")
        weight, bias = w @ weight, w @ bias + b
    if weight.ndim != 2 or len(weight) != 1:
        raise WeightsError(f"{head}: the head ends in {list(weight.shape)}, expected one number")
    return weight[0], float(bias[0])


def _tensors(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.double().numpy() for name, tensor in loaded.items()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (SafetensorError, OSError, RuntimeError, AttributeError, ValueError, EOFError, KeyError) as why:
        raise WeightsError(f"{path}: no weights: {str(why).splitlines()[0] if str(why) else why!r}") from None
    except Exception as why:  # pickle's errors, of which torch has its own kinds
        raise WeightsError(f"{path}: no weights that can be read safely: {type(why).__name__}") from None


@dataclass(frozen=True)
class Taxonomy:
    """Concepts with the phrases that stand for each, templates for them, and yes/no questions (`flags`)."""

    name: str
    templates: tuple[str, ...]
    concepts: dict[str, tuple[str, ...]]
    flags: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def taxonomy(name: str) -> Taxonomy:
    """The shipped taxonomy `name` (`concepts.v1`) or the one in a .toml file. WeightsError says what is odd."""
    path = Path(name) if name.endswith(".toml") else CONCEPTS / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in CONCEPTS.glob("*.toml")))
        raise WeightsError(
            f"concepts {name!r}: no such file; shipped are {shipped}, or give the path of a .toml"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        raise WeightsError(f"{path}: no valid TOML: {why}") from None

    def phrases(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)

    concepts, flags, templates = raw.get("concepts", {}), raw.get("flags", {}), raw.get("templates", [])
    if not phrases(templates) or not all("{}" in text for text in templates):
        raise WeightsError(f"{path}: templates must be texts with {{}} where the phrase goes")
    if len(concepts) < 2 or not all(phrases(value) for value in concepts.values()):
        raise WeightsError(f"{path}: [concepts] needs two or more lines NAME = [phrases]")
    for flag in flags.values():
        if not isinstance(flag, dict) or not phrases(flag.get("yes")) or not phrases(flag.get("no")):
            raise WeightsError(f"{path}: a flag is a section with yes = [phrases] and no = [phrases]")
    return Taxonomy(
        path.stem,
        tuple(templates),
        {name: tuple(value) for name, value in concepts.items()},
        {name: (tuple(flag["yes"]), tuple(flag["no"])) for name, flag in flags.items()},
    )


class Concepts:
    """The `concepts` operator: the taxonomy's concept that CLIP finds likeliest, and its flags, all without training.

    A concept's vector is the mean over its phrases and the templates. Probabilities are the softmax over
    100 * cosine, CLIP's own temperature; among the concepts of the file, not in the world.
    """

    def __init__(self, embedder: Embedder, taxonomy: Taxonomy) -> None:
        self.embedder = embedder
        self.taxonomy = taxonomy
        self.names = list(taxonomy.concepts)
        self._concepts = np.stack([self._class(phrases) for phrases in taxonomy.concepts.values()])
        self._flags = {
            name: np.stack([self._class(yes), self._class(no)]) for name, (yes, no) in taxonomy.flags.items()
        }

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        vectors = self.embedder.images(samples)
        shares = _softmax(100 * vectors @ self._concepts.T)
        flags = {name: _softmax(100 * vectors @ pair.T)[:, 0] for name, pair in self._flags.items()}
        return [
            {
                "clip_concept": self.names[int(share.argmax())],
                "clip_concept_score": float(share.max()),
                "clip_nsfw": float(flags["nsfw"][i]) if "nsfw" in flags else None,
                "clip_watermark": float(flags["watermark"][i]) if "watermark" in flags else None,
                "clip_taxonomy": self.taxonomy.name,
            }
            for i, share in enumerate(shares)
        ]

    def _class(self, phrases: Sequence[str]) -> Vectors:
        texts = [template.replace("{}", phrase) for phrase in phrases for template in self.taxonomy.templates]
        mean = self.embedder.texts(texts).mean(0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)


class Similarity:
    """The `similarity` operator: cosine of the picture with its raw caption and each sentence of the synthetic one.

    CLIP reads 77 tokens, so a long caption is scored sentence by sentence: `similarity_en` is their mean, and the least
    similar sentence is the first place to look for an invention.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        vectors = self.embedder.images(samples)
        raw = [str(sample.values.get("caption_raw") or "").strip() for sample in samples]
        raw = ["" if is_mostly_han(text) else text for text in raw]  # the text towers of CLIP were trained on English
        parts = [sentences(str(sample.values.get("caption_en") or "")) for sample in samples]
        texts = list(dict.fromkeys([text for text in raw if text] + [text for part in parts for text in part]))
        place = {text: i for i, text in enumerate(texts)}
        meanings = self.embedder.texts(texts)
        rows = []
        for vector, text, part in zip(vectors, raw, parts, strict=True):
            scores = [float(vector @ meanings[place[sentence]]) for sentence in part]
            rows.append(
                {
                    "similarity_raw": float(vector @ meanings[place[text]]) if text else None,
                    "similarity_en": sum(scores) / len(scores) if scores else None,
                    "similarity_en_least": min(scores, default=None),
                    "similarity_en_sentences": scores or None,
                }
            )
        return rows


def revision(weights: Path) -> str:
    """First 12 hex digits of a SHA-256 of the weights: of each tensor file its length, head, middle and tail (64 KiB),
    of the small files beside it everything; gigabytes are not read at each start."""
    digest = hashlib.sha256()
    kinds = (".safetensors", ".bin", ".pt", ".pth", ".json", ".model", ".spm", ".txt", ".jinja")
    files = [weights] if weights.is_file() else sorted(file for file in weights.iterdir() if file.suffix in kinds)
    if not files:
        raise WeightsError(f"{weights}: holds no weights")
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if weights.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as stream:
            if size <= 16 << 20:
                digest.update(stream.read())
                continue
            for start in (0, size // 2, size - (64 << 10)):
                stream.seek(start)
                digest.update(stream.read(64 << 10))
    return digest.hexdigest()[:12]


def quick_gelu(architecture: str) -> bool:
    """Whether a configuration of open_clip has QuickGELU; raises WeightsError for one that does not exist."""
    import open_clip

    if architecture.endswith(".json"):
        try:
            config = json.loads(Path(architecture).read_bytes())
        except (OSError, ValueError) as why:
            raise WeightsError(f"{architecture}: no configuration of open_clip: {why}") from None
    else:
        config = open_clip.get_model_config(architecture)
    if not isinstance(config, dict):
        raise WeightsError(f"open_clip has no configuration {architecture!r}")
    return bool(config.get("quick_gelu"))


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _unit(features: Tensor) -> Vectors:
    features = features.float()
    return np.asarray((features / features.norm(dim=-1, keepdim=True)).cpu().numpy(), np.float32)


def _softmax(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float64)
