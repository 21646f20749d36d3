"""Weights by name: `curate models list|pull|check`, and where an operator finds what its recipe names.

    curate models pull cogvlm-chat
    curate models check deploy/recipes/kolors.toml

The table is data (models.toml); a file of your own in CURATE_MODELS_TABLE adds to it. Weights lie in CURATE_MODELS/NAME
when that is set, otherwise in the hub's cache (files that come from elsewhere: ~/.cache/curate/models). Nothing is ever
fetched by a run: what is missing is an error that names the command. HF_HUB_OFFLINE=1 forbids `pull` too.

A file is what the table says, or what the hub said when it was fetched, or it is refused; SHA-256 is computed once for
each state of a file and remembered in ~/.cache/curate/sha256.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from curate.errors import CurateError, UsageError, nearest
from curate.recipe import HEADS, TRANSLATORS, Recipe

TABLE = Path(__file__).with_name("models.toml")
PIECE = 1 << 20
WAIT_S = 30.0  # for the next bytes of a download
REMEMBERED_FROM = 4 << 20  # bytes of a file whose hash is remembered; smaller ones are read again
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Model:
    """One entry of models.toml, which says what each field means."""

    name: str
    about: str
    files: dict[str, str]
    bytes: int
    operators: tuple[str, ...]
    licence: str
    repo: str = ""
    revision: str = ""
    url: str = ""
    restriction: str = ""
    file: str = ""
    tokenizer: str = ""
    architecture: str = ""
    convert: bool = False

    @property
    def source(self) -> str:
        """Where it comes from, with the commit."""
        return self.url or f"{self.repo}@{self.revision[:12] or 'newest'}"


@dataclass(frozen=True)
class Need:
    """A recipe key that names weights or somebody who answers, and what became of it: `path`, or `problem`."""

    key: str
    value: str
    model: Model | None = None
    path: Path | None = field(default=None, compare=False)
    problem: str = ""


@functools.cache
def table(extra: str = "") -> dict[str, Model]:
    """All known models by name: models.toml, then the file `extra`, whose entries win."""
    models: dict[str, Model] = {}
    for path in (TABLE, *([Path(extra)] if extra else [])):
        try:
            raw = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
            raise UsageError(f"CURATE_MODELS_TABLE: {path} is no table of models: {why}") from None
        for name, entry in raw.items():
            models[name] = _entry(path, name, entry)
    for name, model in models.items():
        if model.tokenizer and model.tokenizer not in models:
            known = nearest(model.tokenizer, models)
            raise UsageError(f"table of models: [{name}]: tokenizer = {model.tokenizer!r} is no entry{known}")
    return models


def known() -> dict[str, Model]:
    """The table with the user's additions."""
    return table(os.environ.get("CURATE_MODELS_TABLE", ""))


def _entry(path: Path, name: str, entry: Any) -> Model:
    where = f"{path}: [{name}]"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be a section")
    kinds = {f.name: f for f in fields(Model) if f.name != "name"}
    for key in entry:
        if key not in kinds:
            raise UsageError(f"{where}: unknown key {key}{nearest(key, kinds)}")
    wanted = {"files": dict, "bytes": int, "operators": list, "convert": bool}
    for key, value in entry.items():
        if not isinstance(value, wanted.get(key, str)):
            raise UsageError(f"{where}: {key} = {value!r} must be {wanted.get(key, str).__name__}")
    for file, digest in entry.get("files", {}).items():
        if not isinstance(digest, str) or not re.fullmatch(r"([0-9a-f]{64})?", digest):
            raise UsageError(f"{where}: files: {file} = {digest!r} must be a SHA-256 in hex, or empty")
    for key in entry.get("operators", ()):
        if not isinstance(key, str):
            raise UsageError(f"{where}: operators: {key!r} must be a recipe key in quotes")
    missing = [key for key in ("about", "files", "bytes", "operators", "licence") if key not in entry]
    if missing or bool(entry.get("repo")) == bool(entry.get("url")):
        raise UsageError(f"{where}: {', '.join(missing) + ' missing' if missing else 'needs either repo or url'}")
    if any(Path(file).is_absolute() or ".." in Path(file).parts for file in (*entry["files"], name)):
        raise UsageError(f"{where}: file names must stay below the model's folder")
    return Model(name=name, **entry | {"operators": tuple(entry["operators"])})


def needed(recipe: Recipe) -> list[tuple[str, str]]:
    """The keys of `recipe` that name weights, with their values."""
    found: list[tuple[str, str]] = []
    if recipe.faces.engine == "yunet":
        found.append(("faces.weights", recipe.faces.weights))
    if recipe.embed.engine == "open_clip":
        found.append(("embed.weights", recipe.embed.weights))
    if recipe.aesthetic.engine in HEADS:
        found.append(("aesthetic.weights", recipe.aesthetic.weights))
    if recipe.aesthetic.engine == "siglip-v2.5":
        found.append(("aesthetic.backbone", recipe.aesthetic.backbone))
    if recipe.caption.engine in ("cogvlm", "transformers"):
        found.append(("caption.weights", recipe.caption.weights))
    if recipe.translate.engine in TRANSLATORS:
        found.append(("translate.weights", recipe.translate.weights))
    if recipe.caption.engine == "cogvlm" and (tokenizer := tokenizer_of(recipe)):
        found.append(("caption.tokenizer", tokenizer))
    return found


def tokenizer_of(recipe: Recipe) -> str:
    """What `caption.tokenizer` says, or the table's tokenizer of `caption.weights`; empty when they hold their own."""
    model = known().get(recipe.caption.weights)
    return recipe.caption.tokenizer or (model.tokenizer if model else "")


def needs(recipe: Recipe) -> list[Need]:
    """Weights and environments that `recipe` needs, each found or with what is wrong."""
    return [_look(key, value) for key, value in needed(recipe)] + _ocr(recipe)


def endpoints(recipe: Recipe) -> list[Need]:
    """Endpoints that `recipe` asks, each with why it does not answer. Waits for each, some seconds at most."""
    found = []
    for name, keys in (("caption", recipe.caption), ("translate", recipe.translate)):
        if keys.engine == "openai":
            from workers.endpoint import EndpointError, knock

            problem = ""
            try:
                knock(keys.endpoint)
            except EndpointError as why:
                problem = f"{name}.endpoint = {keys.endpoint!r}: {str(why).partition(': ')[2]}"
            found.append(Need(f"{name}.endpoint", keys.endpoint, problem=problem))
    return found


def _ocr(recipe: Recipe) -> list[Need]:
    """What the engine of [ocr] needs beside weights: a GPU, PaddleOCR's environment and folders."""
    keys = recipe.ocr
    found: list[Need] = []
    if keys.engine == "rapidocr" and keys.device != "cpu":
        from workers.ocr import providers

        try:
            providers(keys.device)
        except ValueError as why:
            found.append(Need("ocr.device", keys.device, problem=str(why)))
    if keys.engine != "paddleocr":
        return found
    folders = {"ocr.detector": keys.detector, "ocr.recogniser": keys.recogniser}
    for key, folder in folders.items() if any(folders.values()) else ():
        problem = ""
        if not folder:
            problem = f"{key} is missing: name a model folder for both, or for neither"
        elif not (Path(folder) / "inference.yml").is_file():
            problem = f"{key} = {folder!r}: a model folder of PaddleOCR holds inference.yml"
        found.append(Need(key, folder, path=None if problem else Path(folder), problem=problem))
    python, problem = keys.python or sys.executable, ""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('paddleocr') is None)"
    try:
        if subprocess.run([python, "-c", code], capture_output=True, timeout=60, check=False).returncode:
            problem = "has no paddleocr"
    except (OSError, subprocess.TimeoutExpired) as why:
        problem = getattr(why, "strerror", None) or "does not answer"
    if problem:
        where = f"ocr.python = {keys.python!r}" if keys.python else f"ocr.python is not set, and {python}"
        problem = f"{where}: {problem}; make paddle makes .venv-paddle/bin/python"
    return [*found, Need("ocr.python", python, path=None if problem else Path(python), problem=problem)]


def require(recipe: Recipe, also: Sequence[Need] = ()) -> None:
    """Raise UsageError that names all that the recipe needs and that is not here, one a line; `also`: `endpoints`."""
    problems = [need for need in (*needs(recipe), *also) if need.problem]
    if problems:
        fix = _fix(problems)
        if len(problems) == 1:
            raise UsageError(problems[0].problem + (f"; run: {fix}" if fix else ""))
        lines = [f"{len(problems)} things that the recipe needs are not here:"]
        lines += [f"  {need.problem}" for need in problems]
        raise UsageError("\n".join(lines + ([f"run: {fix}"] if fix else [])))


def _fix(problems: Sequence[Need]) -> str:
    """The command that fetches what is missing."""
    absent = list(dict.fromkeys(need.model.name for need in problems if need.model))
    return f"curate models pull {' '.join(absent)}" if absent else ""


def locate(key: str, value: str) -> Path:
    """The file or folder that `key` = `value` means: a path, or a model of the table. UsageError when there is none."""
    need = _look(key, value)
    if need.path is None:
        fix = f"; run: curate models pull {need.model.name}" if need.model else ""
        raise UsageError(need.problem + fix)
    return need.path


def _look(key: str, value: str) -> Need:
    fitting = [name for name, model in known().items() if key in model.operators]
    model = known().get(value)
    if not value:
        return Need(key, value, problem=f"{key} is missing; name a path, or one of {', '.join(fitting)}")
    # A name of the table is that model, whatever lies in the current folder; ./NAME is the folder.
    if model is None and Path(value).expanduser().exists():
        return Need(key, value, path=Path(value).expanduser())
    if model is None:
        return Need(key, value, problem=f"{key} = {value!r} is no path and no model{nearest(value, fitting)}")
    if key not in model.operators:
        return Need(key, value, problem=f"{key} = {value!r}: that model is for {', '.join(model.operators)}")
    folder = find(model)
    if folder is None:
        return Need(key, value, model, problem=f"{key} = {value!r} is not here yet ({size(model.bytes)})")
    if wrong := mismatches(model, folder):
        return Need(key, value, model, problem=wrong[0])
    return Need(key, value, model, folder / model.file if model.file else folder)


def find(model: Model) -> Path | None:
    """The folder that holds all of the model's files, or None."""
    for folder in _folders(model):
        if folder.is_dir() and not missing_files(model, folder):
            return folder
    return None


def missing_files(model: Model, folder: Path) -> list[str]:
    """Names and patterns of the model, and shards of its index, that are not in `folder`."""
    missing = [name for name in model.files if not any(folder.glob(_escaped(name)))]
    if model.convert and model.file and not (folder / model.file).is_file():
        missing.append(model.file)
    for index in folder.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            missing.append(index.name)
            continue
        missing += sorted(shard for shard in shards if not (folder / str(shard)).is_file())
    return missing


def mismatches(model: Model, folder: Path) -> list[str]:
    """One line for each file that is damaged or another: by its hash where one is known, and by its form."""
    wrong = [
        f"{path}: {digest_name(expected)} is {found}, expected {expected} for {model.name}; delete the file"
        for path, expected in _hashes(model, folder)
        if (found := digest(path, expected)) != expected
    ]
    files = [path for name in model.files for path in sorted(folder.glob(_escaped(name)))]
    wrong += [f"{path}: {why}; delete the file" for path in files if (why := malformed(path))]
    if model.convert and not wrong and (why := _not_converted(model, folder)):
        wrong.append(f"{folder / model.file}: {why}; delete the file")
    return wrong


def unverified(model: Model, folder: Path) -> int:
    """Files of the model for which neither the table nor the hub has told a hash."""
    known = {path for path, _ in _hashes(model, folder)}
    return sum(path not in known for name in model.files for path in folder.glob(_escaped(name)))


def digest_name(expected: str) -> str:
    """The hub knows large files by their SHA-256, small ones by Git's SHA-1."""
    return "sha256" if len(expected) == 64 else "Git's sha1"


def digest(path: Path, like: str) -> str:
    """SHA-256 of a file, or Git's SHA-1 where `like` is one; of a large one computed once for each state of the file.

    Workers of one machine that ask together wait for the first of them: 35 GB are not read by all.
    """
    stat = path.stat()
    if stat.st_size < REMEMBERED_FROM:
        return _read(path, like)
    state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "curate" / "sha256"
    stamp = cache / hashlib.sha256(f"{digest_name(like)} {path.resolve()}".encode()).hexdigest()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with stamp.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known, _, found = file.read().strip().partition("\n")
            if known != state or len(found) != len(like):
                found = _read(path, like)
                file.seek(0)
                file.truncate()
                file.write(f"{state}\n{found}\n")
            return found
    except OSError:  # no place to remember it in
        return _read(path, like)


def _read(path: Path, like: str) -> str:
    if len(like) == 64:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            blob.update(piece)
    return blob.hexdigest()


def malformed(path: Path) -> str:
    """Why a file is not whole, as far as its form tells without a hash; empty when nothing is wrong."""
    with path.open("rb") as stream:
        head = stream.read(16)
    if not head:
        return "is empty"
    if head == LFS_POINTER[:16]:
        return "is a pointer of Git LFS and not the file"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "is no valid JSON"
    if path.suffix == ".safetensors":
        return "" if _header(path) is not None else "is cut or no safetensors"
    if path.suffix in (".bin", ".pth", ".pt") and head[:1] != b"\x80" and not zipfile.is_zipfile(path):
        return "is cut or no weights of PyTorch"
    return ""


def _header(path: Path) -> dict[str, Any] | None:
    """The header of a safetensors file, or None when the file is not exactly as long as it says."""
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(size)) if 0 < size < path.stat().st_size else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return header if 8 + size + max(ends, default=0) == path.stat().st_size else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _escaped(name: str) -> str:
    """`name` as a glob in which only * is special."""
    return name.replace("[", "[[]").replace("?", "[?]")


def home() -> Path | None:
    """CURATE_MODELS, or None when it is not set."""
    return Path(os.environ["CURATE_MODELS"]).expanduser() if os.environ.get("CURATE_MODELS") else None


def _target(model: Model) -> Path | None:
    """The folder that `pull` fills; None means the hub's cache."""
    if model.repo and home() is None:
        return None
    return (home() or Path("~/.cache/curate/models").expanduser()) / model.name


def _folders(model: Model) -> list[Path]:
    """Where the model may lie, the first choice first."""
    folders = [folder] if (folder := _target(model)) else []
    if model.repo:
        repository = _hub_cache() / f"models--{model.repo.replace('/', '--')}"
        revision = model.revision
        ref = repository / "refs" / "main"
        if not revision and ref.is_file():
            revision = ref.read_text().strip()
        if revision:
            folders.append(repository / "snapshots" / revision)
    return folders


def _hub_cache() -> Path:
    """Where huggingface_hub keeps its files, by its own variables; it need not be installed to look there."""
    root = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(root) / "hub").expanduser()


def pull(names: Sequence[str], console: Console | None = None) -> None:
    """Fetch models that are not here yet, each with its licence printed once. CurateError when one cannot be had."""
    console = console or Console(highlight=False)
    models = [_known(name) for name in names]
    for model in list(models):
        if model.tokenizer and known()[model.tokenizer] not in models:
            models.append(known()[model.tokenizer])
    for model in models:
        if folder := find(model):
            if wrong := mismatches(model, folder):
                raise CurateError(wrong[0])
            console.print(f"{model.name}: already in {folder}", soft_wrap=True)
            continue
        console.print(f"{model.name}: {size(model.bytes)} from {model.source}", soft_wrap=True)
        console.print(f"  {terms(model)}", soft_wrap=True)
        if model.repo and not model.revision:
            console.print("  the table pins no commit: the newest one is fetched")
        folder = _fetch(model)
        for path, expected in _hashes(model, folder):
            if (found := digest(path, expected)) != expected:
                path.resolve().unlink()  # what the hub's cache holds behind the name; the next pull fetches it anew
                path.unlink(missing_ok=True)
                raise CurateError(
                    f"{path}: {digest_name(expected)} is {found}, expected {expected} for {model.name}; "
                    "removed, pull again"
                )
        if model.convert:
            _convert(model, folder)
        if lacking := missing_files(model, folder):
            raise CurateError(f"{model.name}: {model.source} has no {', '.join(lacking)}")
        console.print(f"  in {folder}", soft_wrap=True)


def _known(name: str) -> Model:
    if name not in known():
        raise UsageError(f"no model {name!r}{nearest(name, known())}")
    return known()[name]


def _fetch(model: Model) -> Path:
    """The folder with all files of the model, those that are not there yet fetched."""
    for folder in _folders(model):
        made = [model.file] if model.convert else []
        if folder.is_dir() and set(missing_files(model, folder)) <= set(made):
            return folder
    target = _target(model)
    try:
        _forbid_offline()
        if model.url:
            assert target is not None
            target.mkdir(parents=True, exist_ok=True)
            for name in model.files:
                if (target / name).is_file():  # whole: it came under another name
                    continue
                url = urllib.parse.urljoin(model.url, urllib.parse.quote(name))
                _download(url, target / name, goes_on=bool(model.files[name]))
            return target
        return _snapshot(model, target)
    except OSError as why:
        # Also urllib's errors and, by its own classes, the hub's.
        raise CurateError(f"{model.name}: cannot be fetched from {model.source}: {_reason(why)}") from None


def _forbid_offline() -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE forbids it")


def _snapshot(model: Model, target: Path | None) -> Path:
    """Fetch from the hub; what an interrupted pull has left is used. Raises OSError for all that the hub refuses."""
    try:
        from huggingface_hub import errors, snapshot_download
        from huggingface_hub.utils import logging
    except ImportError:
        raise OSError("that needs huggingface_hub: pip install 'curate[models]'") from None
    # Its retries are five warnings; one line says why.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return Path(
            snapshot_download(
                model.repo,
                revision=model.revision or None,
                local_dir=target,
                allow_patterns=list(model.files),
            )
        )
    except errors.GatedRepoError:
        raise OSError("the repository is gated: accept its licence on its page, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise OSError("there is no such repository, or it is private: set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise OSError("there is no such revision") from None
    # The hub's client names its HTTP library's error here, which differs between versions.
    except (errors.HfHubHTTPError, errors.HTTPError, errors.LocalEntryNotFoundError) as why:  # type: ignore[attr-defined]
        raise OSError(str(why) or type(why).__name__) from None


def _download(url: str, path: Path, *, goes_on: bool) -> None:
    """Fetch one file beside its final name and move it there.

    `goes_on`: a partial file is continued, which needs a hash to tell whether both halves are of one file.
    """
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if goes_on and part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=WAIT_S)
    except urllib.error.HTTPError as why:
        if why.code == 416 and have:  # the part is whole, or another file's
            part.unlink()
        raise OSError(f"{url}: HTTP {why.code} {why.reason}") from None
    with answer, part.open("ab" if answer.status == 206 else "wb") as stream:
        while piece := answer.read(PIECE):
            stream.write(piece)
        expected = answer.headers.get("Content-Length")
    have = have if answer.status == 206 else 0
    if expected is not None and part.stat().st_size != have + int(expected):
        raise OSError(f"{url}: the connection ended early; pull again to go on")
    part.replace(path)


def _convert(model: Model, folder: Path) -> None:
    """Pickled weights to safetensors: tensors are read with weights_only, which runs nothing.

    The file says what it was made of and what it holds, so that another one in its place is noticed.
    """
    target = folder / model.file
    if target.is_file():
        return
    try:
        import torch
        from safetensors.torch import save
    except ImportError:
        raise CurateError(
            f"{model.name}: turning it into safetensors needs torch: pip install 'curate[models]'"
        ) from None
    (source,) = model.files
    try:
        tensors = torch.load(folder / source, map_location="cpu", weights_only=True)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        data = save(tensors)
    except Exception as why:  # torch raises what pickle, zip and its own reader raise
        raise CurateError(f"{folder / source}: no weights that can be read safely: {type(why).__name__}") from None
    part = target.with_name(f"{target.name}.part")
    # safetensors would write its metadata in a random order, and the file's hash is part of fingerprints.
    of = {"source_sha256": _read(folder / source, "0" * 64), "tensors_sha256": _held(data)}
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps({"__metadata__": of, **json.loads(data[8:size])}).encode()
    header += b" " * (-len(header) % 8)
    part.write_bytes(len(header).to_bytes(8, "little") + header + data[size:])
    part.replace(target)


def _not_converted(model: Model, folder: Path) -> str:
    """Why a converted file is not what its source gives; empty when it is."""
    header = _header(folder / model.file)
    if header is None:
        return "is cut or no safetensors"
    said = header.get("__metadata__") or {}
    (source,) = model.files
    if said.get("source_sha256") != _read(folder / source, "0" * 64):
        return f"was not made from {source}"
    return "" if said.get("tensors_sha256") == _held((folder / model.file).read_bytes()) else "is damaged"


def _held(data: bytes) -> str:
    """SHA-256 of the tensors of a safetensors file, without its header."""
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _hashes(model: Model, folder: Path) -> list[tuple[Path, str]]:
    """Files with the SHA-256 of the table or, for others, the hash that the hub gave as the file's ETag."""
    found = []
    for name, expected in model.files.items():
        for path in sorted(folder.glob(_escaped(name))):
            etag = path.resolve().name
            told = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
            if told.is_file():
                etag = next(iter(told.read_text().splitlines()[1:]), "")
            if expected or re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", etag):
                found.append((path, expected or etag))
    return found


def _reason(why: OSError) -> str:
    """The cause in one line, without the hub client's advice."""
    cause = getattr(why, "reason", None) or why.strerror or why
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(why).__name__)[:300]


def show_list(console: Console | None = None) -> None:
    """Print the table: name, size, whether it is here, the keys that take it; below it what it is and its licence."""
    console = console or Console(highlight=False)
    width = max(map(len, known()))
    for model in known().values():
        folder = find(model)
        state = "not here" if not folder else "damaged" if mismatches(model, folder) else "here"
        keys = ", ".join(model.operators)
        console.print(
            Text(f"{model.name:<{width}}  ", style="bold") + Text(f"{size(model.bytes):>8}  {state:<8}  {keys}")
        )
        console.print(Padding(Text(f"{model.about}\n{terms(model)}", style="dim"), (0, 0, 0, 2)))


def terms(model: Model) -> str:
    """Licence and restriction in a line."""
    return f"licence: {model.licence}" + (f"; {model.restriction}" if model.restriction else "")


def check(recipe: Recipe, console: Console | None = None) -> None:
    """Print what `recipe` needs and where it is; UsageError when something is missing."""
    console = console or Console(highlight=False)
    found = needs(recipe) + endpoints(recipe)
    for need in found:
        state = need.problem.removeprefix(need.key).removeprefix(" = ") or str(need.path or f"{need.value} answers")
        console.print(
            Text(f"{need.key:<18}  ", style="bold") + Text(state, style="red" if need.problem else ""), soft_wrap=True
        )
        if need.model and need.path and (count := unverified(need.model, _folder_of(need.model, need.path))):
            said = f"{count} of its files unverified: neither the table nor the hub has told their hash"
            console.print(Text(f"{'':<20}{said}", style="yellow"), soft_wrap=True)
    if not found:
        console.print("this recipe needs no weights")
    if problems := [need for need in found if need.problem]:
        fix = _fix(problems)
        raise UsageError(f"{len(problems)} of {len(found)} are not here" + (f"; run: {fix}" if fix else ""))


def _folder_of(model: Model, path: Path) -> Path:
    return path.parent if model.file else path


def size(count: int) -> str:
    """Bytes in the unit that fits: 4 kB, 233 kB, 35.3 GB."""
    for unit, power in (("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{max(1, round(count / 1000))} kB"
