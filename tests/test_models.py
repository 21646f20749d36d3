"""Weights by name: the table, fetching from a real server on loopback, and what a recipe misses."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from forked import Forks
from hub_server import COMMIT, Hub, serving

from curate import models
from curate.errors import CurateError, UsageError
from curate.recipe import SECTIONS, Recipe, from_tables

WEIGHTS = bytes(range(256)) * 64
ENTRY = f"""
[tiny]
about = "a tiny model"
repo = "maker/tiny"
revision = "{COMMIT}"
files = {{ "config.json" = "", "model-*.txt" = "", "w.onnx" = "{hashlib.sha256(WEIGHTS).hexdigest()}" }}
file = "w.onnx"
bytes = 16400
operators = ["faces.weights"]
licence = "MIT"
restriction = "for tests alone"
tokenizer = "words"

[words]
about = "its tokenizer, whose newest commit is taken"
repo = "maker/words"
files = {{ "vocab.txt" = "" }}
bytes = 10
operators = ["caption.tokenizer"]
licence = "MIT"
"""
TINY = {
    "maker/tiny/config.json": b"{}",
    "maker/tiny/model-1.txt": b"one",
    "maker/tiny/w.onnx": WEIGHTS,
    "maker/tiny/README.md": b"not asked for",
    "maker/words/vocab.txt": b"a b c",
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "table.toml").write_text(ENTRY)
    with serving(Hub(dict(TINY))) as served:
        yield served


FORKS = Forks()


@pytest.fixture(scope="module", autouse=True)
def forks() -> Iterator[None]:
    """The process that commands of this file are forked from."""
    with FORKS:
        yield


def curate(folder: Path, hub: Hub | None, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the real command with its caches in `folder`; without a server, at a port where nobody listens."""
    return FORKS(arguments, environment(folder, hub, **variables), ROOT)


def environment(folder: Path, hub: Hub | None, **variables: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "CURATE_"))},
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HOME": str(folder / "hf"),
        "HOME": str(folder),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CURATE_MODELS_TABLE": str(folder / "table.toml"),
        **variables,
    }


def test_pull_prints_the_licence_once_and_a_second_pull_asks_the_server_nothing(tmp_path: Path, hub: Hub) -> None:
    done = curate(tmp_path, hub, "models", "pull", "tiny", CURATE_MODELS=str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("licence: MIT; for tests alone") == 1
    assert "words: " in done.stdout  # what the table names as its tokenizer comes along
    assert "the newest one is fetched" in done.stdout
    folder = tmp_path / "models" / "tiny"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"config.json", "model-1.txt", "w.onnx"}
    assert (folder / "w.onnx").read_bytes() == WEIGHTS
    hub.asked.clear()
    again = curate(tmp_path, hub, "models", "pull", "tiny", CURATE_MODELS=str(tmp_path / "models"))
    assert (again.returncode, hub.asked) == (0, [])
    assert f"tiny: already in {folder}" in again.stdout


def test_without_curate_models_the_hub_s_own_cache_is_used(tmp_path: Path, hub: Hub) -> None:
    assert curate(tmp_path, hub, "models", "pull", "tiny").returncode == 0
    snapshot = tmp_path / "hf" / "hub" / "models--maker--tiny" / "snapshots" / COMMIT
    assert (snapshot / "w.onnx").read_bytes() == WEIGHTS
    assert re.search(r"tiny +\d+ kB +here", curate(tmp_path, None, "models", "list").stdout)


def test_a_lost_connection_is_taken_up_where_it_ended(tmp_path: Path, hub: Hub) -> None:
    hub.files["maker/words/vocab.txt"] = bytes(25 << 20)
    hub.cut["maker/words/vocab.txt"] = 21 << 20  # the hub's client counts in pieces of 10 MiB
    done = curate(tmp_path, hub, "models", "pull", "words", CURATE_MODELS=str(tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "words" / "vocab.txt").read_bytes() == bytes(25 << 20)
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("vocab.txt")]
    assert ranges == ["", f"bytes={20 << 20}-"]


def test_a_file_whose_bytes_are_not_what_the_hub_says_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.etags["maker/words/vocab.txt"] = "ab" * 32
    for variables in ({}, {"CURATE_MODELS": str(tmp_path / "models")}):
        done = curate(tmp_path, hub, "models", "pull", "words", **variables)
        assert done.returncode == 1
        assert f"expected {'ab' * 32} for words; removed, pull again" in done.stderr
        assert list(tmp_path.rglob("vocab.txt")) == []


def test_a_file_with_another_hash_is_refused_with_both_and_removed(tmp_path: Path, hub: Hub) -> None:
    hub.files["maker/tiny/w.onnx"] = WEIGHTS[::-1]
    done = curate(tmp_path, hub, "models", "pull", "tiny", CURATE_MODELS=str(tmp_path / "models"))
    assert done.returncode == 1
    line = done.stderr.strip()
    assert "\n" not in line
    assert hashlib.sha256(WEIGHTS).hexdigest() in line
    assert hashlib.sha256(WEIGHTS[::-1]).hexdigest() in line
    hub.files["maker/tiny/w.onnx"] = WEIGHTS
    assert curate(tmp_path, hub, "models", "pull", "tiny", CURATE_MODELS=str(tmp_path / "models")).returncode == 0


@pytest.mark.parametrize(
    ("names", "change", "complaint"),
    [
        (["tiny"], "gated", "the repository is gated: accept its licence on its page, then set HF_TOKEN"),
        (["tiny"], "gone", "there is no such repository"),
        (["tiny"], "lacking", "has no model-*.txt"),
        (["tiny"], "offline", "HF_HUB_OFFLINE forbids it"),
        (["tinny"], "", "no model 'tinny'; did you mean 'tiny'?"),
        ([], "", "name a model (curate models list) or a recipe"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    names: list[str], change: str, complaint: str, tmp_path: Path, hub: Hub
) -> None:
    if change == "gated":
        hub.gated.add("maker/tiny")
    elif change == "gone":
        hub.files = {}
    elif change == "lacking":
        del hub.files["maker/tiny/model-1.txt"]
    variables = {"HF_HUB_OFFLINE": "1"} if change == "offline" else {}
    done = curate(tmp_path, hub, "models", "pull", *names, CURATE_MODELS=str(tmp_path / "models"), **variables)
    assert done.returncode == (1 if change else 2)
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert (hub.asked == []) == (change in ("offline", ""))


def test_files_that_lie_elsewhere_are_fetched_continued_and_turned_into_safetensors(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    import torch
    from safetensors.torch import load_file

    out = io.BytesIO()
    torch.save({"weight": torch.arange(4.0)[None], "bias": torch.ones(1)}, out)
    pickled = out.getvalue()
    (tmp_path / "table.toml").write_text(f"""
[head]
about = "a head"
url = "{hub.url}/plain/main/"
files = {{ "a+b.pth" = "{hashlib.sha256(pickled).hexdigest()}" }}
file = "head.safetensors"
convert = true
bytes = 1000
operators = ["faces.weights"]
licence = "MIT"
""")
    hub.files["plain/main/a+b.pth"] = pickled
    hub.cut["plain/main/a+b.pth"] = 300
    monkeypatch.setenv("CURATE_MODELS_TABLE", str(tmp_path / "table.toml"))
    monkeypatch.setenv("CURATE_MODELS", str(tmp_path / "models"))
    with pytest.raises(CurateError, match="pull again to go on"):
        models.pull(["head"])
    models.pull(["head"])
    assert [asked for _, _, asked in hub.asked] == ["", "bytes=300-"]
    path = models.locate("faces.weights", "head")
    assert load_file(path)["weight"].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    # Without a network what lies there is all that is needed: only the conversion is missing.
    made = path.read_bytes()
    path.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    models.pull(["head"])
    assert (path.read_bytes(), hub.asked) == (made, [])
    # Another file in its place, or damage in its tensors, is refused by name.
    from safetensors.torch import save_file

    for change, complaint in (("other", "was not made from a+b.pth"), ("bits", "is damaged"), ("cut", "is cut")):
        data = bytearray(made)
        if change == "other":
            save_file({"weight": torch.randn(1, 4), "bias": torch.zeros(1)}, path)
        else:
            data[-1] ^= 1
            path.write_bytes(data if change == "bits" else data[:-3])
        with pytest.raises(
            UsageError,
            match=f"{re.escape(str(path))}: {re.escape(complaint)}.*delete the file; run: curate models pull head",
        ):
            models.locate("faces.weights", "head")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    hub.files["plain/head.pth"] = pickle.dumps(Evil())
    (tmp_path / "table.toml").write_text(f"""
[head]
about = "a head"
url = "{hub.url}/plain/"
files = {{ "head.pth" = "" }}
file = "head.safetensors"
convert = true
bytes = 1000
operators = ["faces.weights"]
licence = "MIT"
""")
    monkeypatch.setenv("CURATE_MODELS_TABLE", str(tmp_path / "table.toml"))
    monkeypatch.setenv("CURATE_MODELS", str(tmp_path / "models"))
    with pytest.raises(CurateError, match="no weights that can be read safely"):
        models.pull(["head"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["cache", "folder"])
def test_a_file_that_changed_after_it_was_fetched_is_refused_by_what_the_hub_had_said(
    where: str, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of words the table has no hash: the hub's own counts, Git's for a small file and SHA-256 for a large one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    small, large = b"a b c", bytes(models.REMEMBERED_FROM)
    hub.files |= {"maker/words/vocab.txt": small, "maker/words/large.txt": large}
    git = hashlib.sha1(b"blob %d\0" % len(small) + small).hexdigest()
    hub.etags |= {"maker/words/vocab.txt": git, "maker/words/large.txt": hashlib.sha256(large).hexdigest()}
    table = tmp_path / "table.toml"
    table.write_text(ENTRY.replace('"vocab.txt" = ""', '"vocab.txt" = "", "large.txt" = ""'))
    variables = {"CURATE_MODELS": str(tmp_path / "models")} if where == "folder" else {}
    assert curate(tmp_path, hub, "models", "pull", "words", **variables).returncode == 0
    (folder,) = [path.parent for path in tmp_path.rglob("vocab.txt")]
    model = models.table(str(table))["words"]
    assert models.mismatches(model, folder) == []
    for name, data, kind in (("vocab.txt", small, "Git's sha1"), ("large.txt", large, "sha256")):
        (folder / name).resolve().write_bytes(data[:-1] + b"x")
        line = models.mismatches(model, folder)[-1 if name == "large.txt" else 0]
        assert f"expected {hub.etags[f'maker/words/{name}']}" in line
        assert f"{name}: {kind} is" in line


def test_the_hash_of_a_large_file_is_computed_once_for_each_state_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    path = tmp_path / "w.bin"
    path.write_bytes(bytes(models.REMEMBERED_FROM))
    first = models.digest(path, "0" * 64)
    (stamp,) = (tmp_path / "xdg" / "curate" / "sha256").iterdir()
    stamp.write_text(stamp.read_text().replace(first, "ab" * 32))
    assert models.digest(path, "0" * 64) == "ab" * 32  # it was not read again
    os.utime(path, (1, 1))
    assert models.digest(path, "0" * 64) == first


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("w.safetensors", b"junk" * 9, "is cut or no safetensors"),
        ("w.safetensors", b"\x02\0\0\0\0\0\0\0{}", ""),
        ("config.json", b"{", "is no valid JSON"),
        ("config.json", b"{}", ""),
        ("pytorch_model.bin", b"junk", "is cut or no weights of PyTorch"),
        ("w.onnx", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS and not the file"),
        ("source.spm", b"", "is empty"),
    ],
)
def test_a_file_of_no_known_hash_must_have_its_form(name: str, data: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert models.malformed(tmp_path / name) == complaint


def test_a_name_of_the_table_is_that_model_whatever_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "yunet").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURATE_MODELS", str(tmp_path / "models"))
    with pytest.raises(UsageError, match="'yunet' is not here yet"):
        models.locate("faces.weights", "yunet")
    assert models.locate("faces.weights", "./yunet") == Path("yunet")


def test_check_knows_who_does_not_answer_before_a_run_begins(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "r.toml").write_text(
        f'input.uri = "{tmp_path}"\nstore.uri = "{tmp_path}/s"\nocr = {{engine = "paddleocr"}}\n'
        '[caption]\nengine = "openai"\nendpoint = "http://127.0.0.1:9/v1"\nmodel = "m"\n'
    )
    for arguments in (("models", "check", str(tmp_path / "r.toml")), ("run", str(tmp_path / "r.toml"), "--dry-run")):
        done = curate(tmp_path, None, *arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 2
        assert "nobody answers there" in said
        assert "has no paddleocr; make paddle makes .venv-paddle/bin/python" in said
    recipe = recipe_with(tmp_path, ocr={"engine": "paddleocr", "detector": str(tmp_path)})
    with pytest.raises(UsageError) as refusal:
        models.require(recipe)
    assert f"ocr.detector = '{tmp_path}': a model folder of PaddleOCR holds inference.yml" in str(refusal.value)
    assert "ocr.recogniser is missing: name a model folder for both, or for neither" in str(refusal.value)


def recipe_with(tmp_path: Path, **sections: dict[str, object]) -> Recipe:
    return from_tables({"input": {"uri": str(tmp_path)}, "store": {"uri": str(tmp_path / "store")}, **sections})


def test_check_names_every_missing_weight_and_the_command_that_gets_them(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "r.toml").write_text(
        f'input.uri = "{tmp_path}"\nstore.uri = "{tmp_path}/s"\nfaces.engine = "yunet"\nfaces.weights = "tiny"\n'
        '[caption]\nengine = "cogvlm"\nweights = "cogvlm-chat"\n'
    )
    done = curate(tmp_path, None, "models", "check", str(tmp_path / "r.toml"))
    assert done.returncode == 2
    assert re.search(r"faces\.weights +'tiny' is not here yet \(16 kB\)", done.stdout)
    assert "3 of 3 are not here" in done.stderr
    assert "run: curate models pull tiny cogvlm-chat vicuna-7b-v1.5-tokenizer" in done.stderr
    pulled = curate(
        tmp_path, hub, "models", "pull", "--recipe", str(tmp_path / "r.toml"), "--set", "caption.engine=none"
    )
    assert pulled.returncode == 0, pulled.stderr
    assert (
        curate(tmp_path, None, "models", "check", str(tmp_path / "r.toml"), "--set", "caption.engine=none").returncode
        == 0
    )
    dry = curate(tmp_path, None, "run", str(tmp_path / "r.toml"), "--dry-run")
    assert dry.returncode == 2
    assert dry.stderr.count("\n") == 4  # a head, a line for each, the command
    assert "caption.weights = 'cogvlm-chat' is not here yet (35.3 GB)" in dry.stderr
    assert "curate models pull cogvlm-chat vicuna-7b-v1.5-tokenizer" in dry.stderr


def test_a_name_for_another_key_a_wrong_name_and_none_are_refused(tmp_path: Path) -> None:
    for weights, complaint in (
        ("opus-mt-en-zh", "faces.weights = 'opus-mt-en-zh': that model is for translate.weights"),
        ("yunett", "is no path and no model; did you mean 'yunet'?"),
        ("", "faces.weights is missing; name a path, or one of yunet"),
    ):
        with pytest.raises(UsageError, match=re.escape(complaint)):
            models.require(recipe_with(tmp_path, faces={"engine": "yunet", "weights": weights}))


def test_every_entry_of_the_table_names_a_recipe_key_and_can_be_printed() -> None:
    keys = {f"{name}.{key}" for name, section in SECTIONS.items() for key in section.__dataclass_fields__}
    for model in models.table().values():
        assert model.licence
        assert set(model.operators) <= keys, model.name
        assert all(len(sha) in (0, 64) for sha in model.files.values())
        assert not model.revision or re.fullmatch(r"[0-9a-f]{40}", model.revision)
        assert model.tokenizer in ("", *models.table())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a", "is no table of models"),
        ("a = 1", "[a] must be a section"),
        ('[a]\nlicense = "MIT"', "unknown key license; did you mean 'licence'?"),
        ('[a]\nbytes = "x"', "bytes = 'x' must be int"),
        ("[a]\nfiles = {f = 1}", "files: f = 1 must be a SHA-256 in hex, or empty"),
        ("[a]\noperators = [3]", "operators: 3 must be a recipe key in quotes"),
        (ENTRY.replace('"words"', '"wordz"'), "tokenizer = 'wordz' is no entry; did you mean 'words'?"),
        ('[a]\nabout = "x"', "files, bytes, operators, licence missing"),
        (ENTRY.replace("w.onnx", "../w.onnx"), "must stay below the model's folder"),
        (ENTRY.replace('repo = "maker/words"', ""), "needs either repo or url"),
    ],
)
def test_a_table_of_one_s_own_is_read_strictly(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(complaint)):
        models.table(str(tmp_path / "t.toml"))


def test_no_code_asks_for_remote_code() -> None:
    for folder in ("curate", "workers", "schemas", "benchmarks", "deploy"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".yaml", ".sh"):
                assert not re.search(r"trust_remote_code\s*=\s*True|weights_only\s*=\s*False", path.read_text()), path


def test_the_recipe_of_kolors_names_all_that_is_missing_and_the_command_that_gets_it(tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text("")
    done = curate(tmp_path, None, "run", "deploy/recipes/kolors.toml", "--dry-run")
    assert done.returncode == 2
    _, _, fix = done.stderr.strip().partition("\nrun: curate models pull ")
    assert set(fix.split()) == {
        "clip-vit-l-14", "laion-aesthetic-v2", "yunet", "cogvlm-chat", "vicuna-7b-v1.5-tokenizer", "opus-mt-en-zh",
    }  # fmt: skip
    for name in fix.split():
        assert f"{name!r} is not here yet" in done.stderr
    assert "ocr.python = '.venv-paddle/bin/python': " in done.stderr or (ROOT / ".venv-paddle").exists()
