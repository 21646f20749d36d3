"""Font faces with Chinese characters, and which characters each can really draw.

    curate synth fonts [--fonts FOLDER]

Faces come from a folder of the user's and from fontconfig. Of a collection (TTC) the Simplified Chinese face counts:
face 0 of Noto Sans CJK is Japanese. A character is covered when the face maps it and draws it: neither blank, nor the
box for missing glyphs, nor a bitmap that more than ten characters share (SynthTIGER's rule).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from curate.errors import UsageError
from curate.synth.words import LEVEL_1

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Drawn in spec.py beside words: figures, Latin and Chinese punctuation.
EXTRA = "".join(map(chr, range(0x21, 0x7F))) + "，。、！？：；“”《》（）·¥℃"
CHECK_PX = 24
MAX_SHARED = 10
MIN_LEVEL_1 = 0.9  # share of GB2312's common characters below which a face is no Chinese one
INSTALL = "apt-get install fonts-noto-cjk fonts-wqy-microhei"

REGION = re.compile(r"\b(SC|CN|GB|Hans|JP|KR|TC|HK|TW|MO|Hant|K|J)\b")
SIMPLIFIED = {"SC", "CN", "GB", "Hans"}
# Words of family names -> kind, which captions name.
KINDS = (
    ("kai", re.compile(r"kai|楷", re.I)),
    ("round", re.compile(r"round|yuan|圆", re.I)),
    ("hand", re.compile(r"hand|brush|script|xing|手|行书|毛笔", re.I)),
    ("serif", re.compile(r"serif|song|sung|ming|宋|明", re.I)),
    ("sans", re.compile(r"sans|hei|gothic|黑", re.I)),
)
# Thin strokes need more pixels: AR PL UKai had 2.0 % of its characters read wrong at 20 to 28 px, the sans faces none.
MIN_PX = {"sans": 22, "round": 24, "serif": 26, "kai": 36, "hand": 36, "other": 28}


@dataclass(frozen=True)
class Face:
    """One face of a font file. `missing` are the wanted characters that it cannot draw."""

    path: str
    index: int
    family: str
    style: str
    kind: str
    sha256: str
    missing: str

    @property
    def id(self) -> str:
        """Names the face in a spec: the file's content and the face in it."""
        return f"{self.sha256[:10]}.{self.index}"

    @property
    def bold(self) -> bool:
        """Whether the style says so."""
        return bool(re.search(r"bold|black|heavy", self.style, re.I))

    @property
    def min_px(self) -> int:
        """Smallest size at which its characters are drawn."""
        return MIN_PX[self.kind]

    def covers(self, text: str) -> bool:
        """Whether every character of `text` can be drawn."""
        return not any(character in self._lacking for character in text)

    @property
    def _lacking(self) -> frozenset[str]:
        return _characters(self.missing)


@lru_cache(256)
def _characters(text: str) -> frozenset[str]:
    return frozenset(text)


@lru_cache(512)
def opened(path: str, index: int, size_px: int) -> ImageFont.FreeTypeFont:
    """The face at a size; BASIC layout, so that the result does not depend on whether Raqm is there."""
    return ImageFont.truetype(path, size_px, index=index, layout_engine=ImageFont.Layout.BASIC)


def find(wanted: str, folder: Path | None = None, system: bool = True) -> tuple[Face, ...]:
    """Every usable face, sorted by id; UsageError when there is none. `wanted` are the characters to be checked.

    Checking takes about a second for each face and is remembered in the user's cache folder.
    """
    paths = _in_folder(folder) if folder else []
    paths += _from_fontconfig() if system else []
    wanted = "".join(sorted({*wanted, *EXTRA}))
    faces = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        for index, family, style in _chosen(path):
            face = _checked(path, index, family, style, wanted)
            common = sum(character in LEVEL_1 for character in face.missing)
            if common <= (1 - MIN_LEVEL_1) * len(LEVEL_1):
                faces[face.id] = face
    if not faces:
        where = f"in {folder}" if folder and not system else "on this machine" + (f" or in {folder}" if folder else "")
        raise UsageError(f"no font with Chinese characters {where}; install some: {INSTALL}, or name a folder: --fonts")
    return tuple(face for _, face in sorted(faces.items()))


def support(faces: Sequence[Face], characters: Iterable[str]) -> Counter[int]:
    """How many of the characters are drawn by 0, 1, 2, ... faces."""
    return Counter(sum(face.covers(character) for face in faces) for character in characters)


def _in_folder(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"--fonts {folder}: no such folder")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _from_fontconfig() -> list[Path]:
    if not shutil.which("fc-list"):
        return []
    listed = subprocess.run(
        ["fc-list", "--format", "%{file}\n", ":lang=zh-cn"], capture_output=True, text=True, check=False
    )
    return sorted({Path(line) for line in listed.stdout.splitlines() if Path(line).suffix.lower() in SUFFIXES})


def _chosen(path: Path) -> list[tuple[int, str, str]]:
    """Number, family and style of the faces of a file that are to be used: Simplified ones, and no monospaced twins."""
    named = []
    for index in range(_faces_in(path)):
        try:
            family, style = ImageFont.truetype(str(path), CHECK_PX, index=index).getname()
        except OSError:
            return []
        named.append((index, family or path.stem, style or "Regular"))
    regions = [set(REGION.findall(family)) for _, family, _ in named]
    if any(found & SIMPLIFIED for found in regions):
        named = [face for face, found in zip(named, regions, strict=True) if found & SIMPLIFIED]
    elif any(regions):
        named = [face for face, found in zip(named, regions, strict=True) if not found]
    proportional = [face for face in named if not re.search(r"\b(Mono|HW)\b", face[1])]
    return proportional or named


def _faces_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return 0
    return int.from_bytes(head[8:12], "big") if head[:4] == b"ttcf" else 1


def _checked(path: Path, index: int, family: str, style: str, wanted: str) -> Face:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    kind = next((kind for kind, words in KINDS if words.search(family)), "other")
    asked = hashlib.sha256(wanted.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "curate" / "fonts"
    known = cache / f"{sha256[:32]}.{index}.{asked}.json"
    try:
        missing = str(json.loads(known.read_text("utf-8"))["missing"])
    except (OSError, ValueError, KeyError):
        missing = _missing(path, index, wanted)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            partial = known.with_name(f"{known.name}.{os.getpid()}")
            partial.write_text(json.dumps({"family": family, "missing": missing}, ensure_ascii=False), "utf-8")
            partial.replace(known)
        except OSError:
            pass  # a home that cannot be written to only costs the check again
    return Face(str(path), index, family, style, kind, sha256, missing)


def _missing(path: Path, index: int, wanted: str) -> str:
    """The characters of `wanted` that the face does not map, or maps and does not draw."""
    try:
        from fontTools.ttLib import TTFont
    except ImportError:
        raise UsageError("fontTools is not installed: pip install 'curate[synth]'") from None
    with TTFont(path, fontNumber=index, lazy=True) as font:
        mapped = font.getBestCmap() or {}
    face = opened(str(path), index, CHECK_PX)
    empty = _bitmap(face, "\U0010fffe")
    drawn = {character: _bitmap(face, character) for character in wanted if ord(character) in mapped}
    users = Counter(drawn.values())
    good = {c for c, bits in drawn.items() if any(bits) and bits != empty and users[bits] <= MAX_SHARED}
    return "".join(character for character in wanted if character not in good)


def _bitmap(face: ImageFont.FreeTypeFont, character: str) -> bytes:
    mask, _ = face.getmask2(character, "L", anchor="ls")
    return bytes(mask)
