"""What `curate evaluate` prints: tables of 80 columns, or one figure a line as csv or json."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console

from curate.errors import UsageError
from curate.evaluate import PROXIES, Outcome, compare
from curate.evaluate.compare import COLUMNS, Block
from curate.rate.agreement import Figure
from curate.store import Store
from curate.table import clean, cut

HEADS = ("length", "complete", "correl.", "halluc.", "subject.", "mean")
LABEL, COUNT, CELL = 18, 7, 9
FIELDS = ("table", "scorer", "captioner", "language", "fingerprint", "against", "criterion", "value", "low", "high",
          "count", "undefined")  # fmt: skip


class Progress:
    """Answers of the judge as they come, on one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self.done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.done and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")

    def __call__(self, done: int) -> None:
        """`done` more answers."""
        self.done += done
        if sys.stderr.isatty():
            sys.stderr.write(f"\rjudge: {self.done:,} answers")
            sys.stderr.flush()


def show(store: Store, outcome: Outcome, console: Console | None = None) -> None:
    """Print a table for each judge, the differences from the best captioner, and the agreement with people."""
    console = console or Console(highlight=False)

    def say(text: str) -> None:
        console.print(text.rstrip(), markup=False, soft_wrap=True)

    say(f"{outcome.pictures:,} pictures, {outcome.captions:,} captions; scores 1 to 5, ± half the 95 % interval")
    for block in outcome.blocks:
        say("")
        say(_heads(block.by, HEADS))
        for line in block.lines:
            say(_line(line.captioner.label, line.pictures, [_score(f) for f in line.figures]))
        if block.differences:
            say(_heads(f"  minus {block.differences[0].against.label}", ()))
        for gap in block.differences:
            say(_line(f"  {gap.captioner.label}", gap.pictures, [_gap(f) for f in gap.figures]))
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
    averaged = {block.averaged for block in outcome.blocks}
    if averaged:
        shown = " / ".join(", ".join(names) or "nothing that all have" for names in sorted(averaged))
        yield f"mean: of {shown}. * the interval of a difference leaves out 0."
    bases = {"similarity": "cosine of picture and caption", "claims": "share of checked claims that hold"}
    for language, basis in outcome.correlation.items():
        yield f"{PROXIES}, correlation of {language}: {bases[basis]}."
    if any(line.captioner.engine == "facts" for block in outcome.blocks for line in block.lines if block.by == PROXIES):
        yield (
            "facts: these captions are composed of the measurements that the proxies check, so the proxies cannot "
            "judge them; a judge or people can."
        )
    for block in outcome.blocks:
        same = [
            x.captioner.label
            for x in block.lines
            if x.captioner.model and block.by.startswith(f"judge {x.captioner.name}/")
        ]
        if same:
            yield f"{block.by} judges itself ({', '.join(same)}): models prefer what they wrote; take another family."
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


def _heads(name: str, heads: Sequence[str]) -> str:
    return _fitted(name, LABEL + COUNT) + "".join(head.rjust(CELL) for head in heads)


def _fitted(text: str, width: int) -> str:
    return set_cell_size(cut(clean(text), width - 1), width)


def _line(name: str, count: int, cells: Sequence[str]) -> str:
    shown = f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.1f}M"
    return _fitted(name, LABEL) + shown.rjust(COUNT) + "".join(cell.rjust(CELL) for cell in cells)


def _score(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.2f}" + _half(figure)


def _gap(figure: Figure) -> str:
    if figure.value is None:
        return "–"
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
