"""What `curate evaluate` prints: tables of 80 columns, or one figure a line as csv or json."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from curate.errors import UsageError
from curate.evaluate import compare
from curate.evaluate.compare import COLUMNS, Block
from curate.evaluate.run import PROXIES, Outcome
from curate.rate.agreement import Figure
from curate.status import duration
from curate.store import Store
from curate.table import clean, cut

HEADS = ("length", "complete", "correl.", "halluc.", "subject.", "mean")
LABEL, COUNT, CELL = 18, 7, 9
FIELDS = ("table", "scorer", "captioner", "language", "fingerprint", "against", "criterion", "value", "low", "high",
          "count", "undefined")  # fmt: skip


class Progress:
    """How far the judge is: one line of a terminal that changes, elsewhere a line a minute."""

    def __init__(self) -> None:
        self.done = self.here = 0
        self.begun = self.told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.done and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")

    def __call__(self, done: int, total: int) -> None:
        """`done` captions more of `total` have been judged."""
        now = time.monotonic()
        self.here += done if self.done else 0  # the first call is of what was answered before
        self.done += done
        text = f"judge: {self.done:,} of {total:,} captions"
        if self.here >= 20:
            text += f", {duration((now - self.begun) / self.here * (total - self.done))} left"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif now - self.told > 60:
            sys.stderr.write(f"{text}\n")
            self.told = now


def show(store: Store, outcome: Outcome, console: Console | None = None) -> None:
    """Print a table for each judge, the differences from the best captioner, and the agreement with people."""
    console = console or Console(highlight=False)

    def say(text: str) -> None:
        console.print(text.rstrip(), markup=False, soft_wrap=True)

    say(f"{outcome.pictures:,} pictures, {outcome.captions:,} captions; scores 1 to 5, ± half the 95 % interval")
    for block in outcome.blocks:
        say("")
        for text in _heads(block.label, HEADS):
            say(text)
        for line in block.lines:
            for text in _line(line.captioner.name, line.pictures, [_score(f, line.pictures) for f in line.figures]):
                say(text)
        if block.differences:
            say(f"  minus {clean(block.differences[0].against.name)}")
        for gap in block.differences:
            for text in _line(f"  {gap.captioner.name}", gap.pictures, [_gap(f, gap.pictures) for f in gap.figures]):
                say(text)
    say("")
    for note in notes(outcome):
        for wrapped in _wrapped(note, 79):
            say(wrapped)
    if outcome.agreement:
        _agreement(outcome, say)
    if outcome.usage:
        used = outcome.usage
        untold = f"; {used.uncounted:,} answers without count" if used.uncounted else ""
        say("")
        say(f"judge: {used.asked:,} asked, {used.kept:,} answered before, {used.failed:,} failed")
        say(f"tokens: {used.tokens_in:,} in, {used.tokens_out:,} out{untold}")
    say(f'why: curate sql {store.uri} "from evaluations"')


def notes(outcome: Outcome) -> Iterator[str]:
    """What a reader of the tables must know."""
    means: dict[tuple[str, ...], list[str]] = {}
    for block in outcome.blocks:
        means.setdefault(block.averaged, []).append(block.label)
    for averaged, labels in means.items():
        yield f"mean ({'; '.join(labels)}): of {', '.join(averaged) or 'nothing, since none have all'}."
    yield "* the interval of a difference leaves out 0. ( ) of fewer than half of the pictures."
    bases = {"similarity": "cosine of picture and caption", "claims": "share of checked claims that hold"}
    for language, basis in outcome.correlation.items():
        yield f"{PROXIES}, correlation of {language}: {bases[basis]}."
    if any(line.captioner.engine == "facts" for block in outcome.blocks for line in block.lines if block.by == PROXIES):
        yield (
            "facts: these captions are composed of the measurements that the proxies check, so the proxies cannot "
            "judge them and they are not compared; a judge or people can."
        )
    for by in dict.fromkeys(block.by for block in outcome.blocks):
        own = [
            line.captioner.label for block in outcome.blocks if block.by == by for line in block.lines
            if line.captioner.model and by.startswith(f"judge {line.captioner.name.partition('@')[0]}/")
        ]  # fmt: skip
        if own:
            yield f"{by} judges itself ({', '.join(own)}): models prefer what they wrote; take another family."
    for name, reasons in outcome.unscored.items():
        yield (
            f"{name}: without scores: "
            + ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
            + "."
        )


def _agreement(outcome: Outcome, say: Callable[[str], None]) -> None:
    say("")
    say(f"{'agreement':<15}{'of people with':<26}{'captions':>9}  quadratic-weighted kappa")
    for one in outcome.agreement:
        pairs = [*one.judges.items(), ("each other", one.people), ("each other, ordinal alpha", one.alpha)]
        for place, (who, figure) in enumerate(pairs):
            head = f"{'' if place else one.criterion:<15}" + _fitted(who, 26) + f"{figure.count:>9,}  "
            if figure.value is None:
                say(f"{head}undefined:")
                say(f"{'':<17}{figure.why}")
            else:
                interval = "" if figure.low is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
                say(f"{head}{figure.value:.2f}{interval}")
    for by in outcome.agreement[0].judges:
        if by != PROXIES:
            words = ", ".join(f"{one.criterion} {compare.trust(one, by)}" for one in outcome.agreement)
            for wrapped in _wrapped(f"{by} agrees with people: {words}", 79):
                say(wrapped)


def _heads(name: str, heads: Sequence[str]) -> list[str]:
    return _beside(name, LABEL + COUNT, "".join(head.rjust(CELL) for head in heads))


def _beside(name: str, width: int, cells: str) -> list[str]:
    """A name and its cells in a line, or in two when the name is long: two names must not look alike."""
    shown = clean(name)
    if cell_len(shown) < width:
        return [set_cell_size(shown, width) + cells]
    return [shown, " " * width + cells]


def _fitted(text: str, width: int) -> str:
    return set_cell_size(cut(clean(text), width - 1), width)


def _line(name: str, count: int, cells: Sequence[str]) -> list[str]:
    shown = f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.1f}M"
    return _beside(name, LABEL, shown.rjust(COUNT) + "".join(cell.rjust(CELL) for cell in cells))


def _score(figure: Figure, pictures: int) -> str:
    if figure.value is None:
        return "–"
    if 2 * figure.count < pictures:
        return f"({figure.value:.2f})"
    return f"{figure.value:.2f}" + _half(figure)


def _gap(figure: Figure, pictures: int) -> str:
    if figure.value is None:
        return "–"
    if 2 * figure.count < pictures:
        return f"({figure.value:+.2f})"
    star = "*" if figure.low is not None and figure.high is not None and (figure.low > 0 or figure.high < 0) else ""
    return f"{figure.value:+.2f}{star}"


def _half(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    half = (figure.high - figure.low) / 2
    return f"±{half:.2f}".replace("±0.", "±.") if half < 1 else f"±{half:.1f}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def figures(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Every figure as one row of FIELDS."""
    for block in outcome.blocks:
        yield from _of(block)
    for one in outcome.agreement:
        for by, figure in one.judges.items():
            yield _row("kappa", by, one.criterion, figure, against="people")
        yield _row("kappa", "people", one.criterion, one.people, against="people")
        yield _row("alpha", "people", one.criterion, one.alpha)


def _of(block: Block) -> Iterator[dict[str, Any]]:
    for line in block.lines:
        for criterion, figure in zip(COLUMNS, line.figures, strict=True):
            yield _row("score", block.by, criterion, figure, line.captioner)
    for gap in block.differences:
        for criterion, figure in zip(COLUMNS, gap.figures, strict=True):
            yield _row("difference", block.by, criterion, figure, gap.captioner, gap.against.label)


def _row(
    table: str, by: str, criterion: str, figure: Figure, captioner: Any = None, against: str | None = None
) -> dict[str, Any]:
    who = (captioner.name, captioner.language, captioner.fingerprint) if captioner else (None, None, None)
    found = (figure.value, figure.low, figure.high, figure.count, figure.why or None)
    return dict(zip(FIELDS, (table, by, *who, against, criterion, *found), strict=True))


def write(outcome: Outcome, kind: str, out: Path | None) -> None:
    """Write every figure as csv, or json (one object a line), to a file or to standard output."""
    try:
        with out.open("w", encoding="utf-8", newline="") if out else nullcontext(sys.stdout) as file:
            if kind == "csv":
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(figures(outcome))
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in figures(outcome))
    except OSError as why:
        raise UsageError(f"--out {out}: {why.strerror or why}") from None
