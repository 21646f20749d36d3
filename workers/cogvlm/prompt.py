"""The text around the picture: chat template, caption prompts (prompts/*.toml), tokenizer, token ids and types."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.cogvlm.config import CheckpointError, Config

PROMPTS = Path(__file__).parent / "prompts"
# `vqa` asks for a short answer, `base` is the query alone.
ANSWERS = {"chat": "Answer:", "vqa": "Short answer:"}

# What the right tokenizer makes of a text, by size of vocabulary. A wrong one still yields ids, and fluent nonsense.
KNOWN_IDS: dict[int, tuple[str, dict[str, list[int]]]] = {
    32000: (
        "lmsys/vicuna-7b-v1.5",
        {
            "Question: Answer:": [894, 29901, 673, 29901],
            "Question: What is the capital of France?\nAnswer:": [
                894, 29901, 1724, 338, 278, 7483, 310, 3444, 29973, 13, 22550, 29901,
            ],
        },
    ),
    128256: ("the CogVLM2 repository itself", {"Question: Answer:": [14924, 25, 22559, 25]}),
}  # fmt: skip


def chat(query: str, history: Sequence[tuple[str, str]] = (), template: str = "chat") -> str:
    """The prompt text: `Question: {query} Answer:`, earlier turns in front. Nothing follows the last colon."""
    if template == "base":
        return query
    answer = ANSWERS[template]
    turns = "".join(f"Question: {asked} {answer} {answered}\n" for asked, answered in history)
    return f"{turns}Question: {query} {answer}"


def sequence(config: Config, text_ids: Sequence[int], image: bool = True) -> tuple[list[int], list[int]]:
    """Token ids and token types: `[BOS] + [pad] * image_tokens + text`, `0, 1 .. 1, 0 ..`."""
    count = config.image_tokens if image else 0
    ids = [config.bos_token_id, *[config.pad_token_id] * count, *text_ids]
    return ids, [0, *[1] * count, *[0] * len(text_ids)]


@dataclass(frozen=True)
class CaptionPrompt:
    """A versioned prompt: `name` is the file's, such as `detailed.v1`; a changed text is a new version."""

    name: str
    template: str
    query: str
    query_with_caption: str | None = None
    caption_characters: int = 200

    def text(self, caption: str | None) -> str:
        """The prompt for a picture that came with `caption`, in CogVLM's template."""
        return chat(self.ask(caption), template=self.template)

    def ask(self, caption: str | None) -> str:
        """What is asked of a picture that came with `caption`, of which at most `caption_characters` are shown."""
        shown = " ".join((caption or "").split())[: self.caption_characters]
        if shown and self.query_with_caption is not None:
            return self.query_with_caption.replace("{caption}", shown)
        return self.query


def caption_prompt(name: str) -> CaptionPrompt:
    """The shipped prompt `name` (`short.v1`, `detailed.v1`, `detailed-hint.v1`), or the one in a .toml file.

    A name with spaces is no name but the query itself.

    Raises ValueError that names the shipped ones, or the key that is wrong.
    """
    if " " in name.strip() and not name.endswith(".toml"):
        return CaptionPrompt(name.strip(), "chat", name.strip())
    path = Path(name) if name.endswith(".toml") else PROMPTS / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.toml")))
        raise ValueError(f"caption prompt {name!r}: no such file; shipped are {shipped}, or give the path of a .toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
        raise ValueError(f"{path}: no valid TOML: {failure}") from None
    known = {"template": str, "query": str, "query_with_caption": str, "caption_characters": int}
    for key, value in raw.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {key!r}; known are {', '.join(known)}")
        if not isinstance(value, known[key]):
            raise ValueError(f"{path}: {key} is {value!r}, expected {known[key].__name__}")
    for key in ("template", "query"):
        if key not in raw:
            raise ValueError(f"{path}: no {key!r}")
    if raw["template"] not in ("base", *ANSWERS):
        raise ValueError(f"{path}: template {raw['template']!r}; known are base, {', '.join(ANSWERS)}")
    if "{caption}" not in raw.get("query_with_caption", "{caption}"):
        raise ValueError(f"{path}: query_with_caption does not say where {{caption}} goes")
    raw = {key: value.strip() if isinstance(value, str) else value for key, value in raw.items()}
    return CaptionPrompt(name=path.stem, **raw)


def tokenizer_revision(folder: Path) -> str:
    """First 12 hex digits of the SHA-256 of the tokenizer's file in `folder`. Raises CheckpointError without one."""
    return hashlib.sha256(_tokenizer_file(folder).read_bytes()).hexdigest()[:12]


def _tokenizer_file(folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder}: neither tokenizer.json nor tokenizer.model; CogVLM ships none: name a folder with the files"
        " of lmsys/vicuna-7b-v1.5"
    )


class Tokenizer:
    """Text to ids and back, without special tokens: tokenizer.json, else sentencepiece's tokenizer.model.

    Both are read by their own libraries: the classes around them have changed how they treat leading spaces more than
    once, and the checkpoint was trained with one fixed treatment. Raises CheckpointError when the folder has neither,
    or when the ids are not those that the checkpoint was trained with.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self._fast: Any = None
        self._pieces: Any = None
        file = _tokenizer_file(folder)
        if file.name == "tokenizer.json":
            import tokenizers

            try:
                self._fast = tokenizers.Tokenizer.from_file(str(file))
            except Exception as failure:  # the library raises bare Exception
                raise CheckpointError(f"{file}: no tokenizer: {failure}") from None
            self._fast.no_padding()
            self._fast.no_truncation()
            # Otherwise `<|end_of_text|>` in a caption from the web becomes the control token of that name.
            self._fast.encode_special_tokens = True
        else:
            import sentencepiece

            try:
                self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
            except (RuntimeError, OSError) as failure:
                raise CheckpointError(f"{file}: no sentencepiece model: {failure}") from None
        self._check(config)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens are neither added nor recognised by spelling."""
        ids = self._fast.encode(text, add_special_tokens=False).ids if self._fast else self._pieces.encode(text)
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens and ids outside the vocabulary yield nothing."""
        if self._fast:
            return str(self._fast.decode(list(ids), skip_special_tokens=True))
        size = self._pieces.get_piece_size()
        return str(self._pieces.decode([i for i in ids if i < size]))

    def _check(self, config: Config) -> None:
        origin, known = KNOWN_IDS.get(config.vocab_size, ("", {}))
        for text, ids in known.items():
            if (found := self.encode(text)) != ids:
                raise CheckpointError(
                    f"{self.folder}: {text!r} becomes {found}, the checkpoint was trained with {ids}; take the"
                    f" tokenizer of {origin}"
                )
        text = "Question: a red gate, 故宫. Answer:"
        largest = max(self.encode(text), default=0)
        if largest >= config.vocab_size:
            raise CheckpointError(
                f"{self.folder}: id {largest} is outside the checkpoint's vocabulary of {config.vocab_size}; this is"
                " another model's tokenizer"
            )
        if self.decode(self.encode(text)).strip() != text:
            raise CheckpointError(f"{self.folder}: {text!r} does not survive encoding and decoding")
