"""Weights by name: `curate models list|pull|check`, and where an operator finds what its recipe names.

    curate models pull cogvlm-chat
    curate models check deploy/recipes/kolors.toml

The table is data (models.toml); a file of your own in CURATE_MODELS_TABLE adds to it. Weights lie in CURATE_MODELS/NAME
when that is set, otherwise in the hub's cache (files that come from elsewhere: ~/.cache/curate/models). Nothing is ever
fetched by a run: what is missing is an error that names the command. HF_HUB_OFFLINE=1 forbids `pull` too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from curate.errors import CurateError, UsageError, nearest
from curate.recipe import HEADS, TRANSLATORS, Recipe

TABLE = Path(__file__).with_name("models.toml")
PIECE = 1 << 20
WAIT_S = 30.0  # for the next bytes of a download


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
    """A recipe key that names weights, and what became of it: `path` where they are, or `problem`."""

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
    """Everything that `recipe` needs, each found or with what is wrong."""
    return [_look(key, value) for key, value in needed(recipe)]


def require(recipe: Recipe) -> None:
    """Raise UsageError that names all weights that the recipe needs and that are not here."""
    problems = [need for need in needs(recipe) if need.problem]
    if problems:
        absent = list(dict.fromkeys(need.model.name for need in problems if need.model))
        fix = f"; run: curate models pull {' '.join(absent)}" if absent else ""
        raise UsageError("; ".join(need.problem for need in problems) + fix)


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
    if Path(value).expanduser().exists():
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
    """One line for each file whose SHA-256 is not the table's."""
    wrong = []
    for name, expected in model.files.items():
        path = folder / name
        if expected and path.is_file() and (found := _sha256(path)) != expected:
            wrong.append(f"{path}: sha256 is {found}, expected {expected} for {model.name}; delete the file")
    return wrong


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, computed once for each state of it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
            if (found := _sha256(path)) != expected:
                path.resolve().unlink()  # what the hub's cache holds behind the name; the next pull fetches it anew
                path.unlink(missing_ok=True)
                raise CurateError(
                    f"{path}: sha256 is {found}, expected {expected} for {model.name}; removed, pull again"
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
    target = _target(model)
    try:
        _forbid_offline()
        if model.url:
            assert target is not None
            target.mkdir(parents=True, exist_ok=True)
            for name in model.files:
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
    """Pickled weights to safetensors: tensors are read with weights_only, which runs nothing."""
    target = folder / model.file
    if target.is_file():
        return
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError:
        raise CurateError(
            f"{model.name}: turning it into safetensors needs torch: pip install 'curate[models]'"
        ) from None
    (source,) = model.files
    try:
        tensors = torch.load(folder / source, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)
    except Exception as why:  # torch raises what pickle, zip and its own reader raise
        raise CurateError(f"{folder / source}: no weights that can be read safely: {type(why).__name__}") from None


def _hashes(model: Model, folder: Path) -> list[tuple[Path, str]]:
    """Fetched files with the SHA-256 of the table or, for others, the one that the hub gave as the file's ETag."""
    found = []
    for name, expected in model.files.items():
        for path in sorted(folder.glob(_escaped(name))):
            etag = path.resolve().name
            told = folder / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
            if told.is_file():
                etag = next(iter(told.read_text().splitlines()[1:]), "")
            if expected or re.fullmatch(r"[0-9a-f]{64}", etag):  # files outside LFS have a git hash
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
        console.print(Text(f"  {model.about}", style="dim"), soft_wrap=True)
        console.print(Text(f"  {terms(model)}", style="dim"), soft_wrap=True)


def terms(model: Model) -> str:
    """Licence and restriction in a line."""
    return f"licence: {model.licence}" + (f"; {model.restriction}" if model.restriction else "")


def check(recipe: Recipe, console: Console | None = None) -> None:
    """Print what `recipe` needs and where it is; CurateError when something is missing."""
    console = console or Console(highlight=False)
    found = needs(recipe)
    for need in found:
        state = need.problem or str(need.path)
        console.print(
            Text(f"{need.key:<18}", style="bold") + Text(state, style="red" if need.problem else ""), soft_wrap=True
        )
    if not found:
        console.print("this recipe needs no weights")
    if any(need.problem for need in found):
        require(recipe)


def size(count: int) -> str:
    """Bytes in the unit that fits: 4 kB, 233 kB, 35.3 GB."""
    for unit, power in (("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{max(1, round(count / 1000))} kB"
