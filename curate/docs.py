"""The generated pages of docs/: columns, recipe keys and error words, written from the code that defines them.

    make docs

tests/test_docs.py fails when a page and its source differ.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import get_type_hints

from curate.recipe import SECTIONS
from schemas.columns import FAILURE, OPERATORS, ROW, SAMPLES_FIRST, VERDICT, Column
from schemas.errors import ROW_ERRORS, SHARD_ERRORS

DOCS = Path(__file__).resolve().parent.parent / "docs"


def columns_page() -> str:
    """docs/columns.md: every column of every operator, and of the views."""
    lines = [
        "# Columns",
        "",
        '    curate sql demo/store "describe samples"',
        "",
        "Written from `schemas/columns.py` by `make docs`. `samples` is one wide row per input row. It begins with",
        ", ".join(f"`{name}`" for name in SAMPLES_FIRST) + ";",
        "then come the other columns of every operator in the order below, then the input's own columns under their own",
        "names (one that clashes with a column here gets the prefix `input_`).",
        "",
        "## Verdict",
        "",
        *_table(VERDICT),
    ]
    for operator, columns in OPERATORS.items():
        lines += ["", f"## {operator}", "", *_table(columns)]
    lines += ["", "## In every part beside them", "", *_table((*ROW, *FAILURE)), "", *VIEWS]
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """docs/recipe.md: every key of a recipe."""
    lines = [
        "# Recipe",
        "",
        "    curate run deploy/recipes/embedded.toml --dry-run",
        "",
        "Written from `curate/recipe.py` by `make docs`. A recipe is a TOML file; `--set section.key=value` overrides a",
        "key; an unknown key is an error that names the nearest known one. The resolved recipe is saved beside the",
        "output, in `STORE/runs/<run>/recipe.toml`. Relative paths start at the current directory.",
        "",
        '`[policy]` holds lines `name = "SQL predicate"` over the columns of docs/columns.md and the input\'s own. They',
        "judge in the order of the file, those over cheap columns before those over costly operators' (faces, OCR,",
        "captions); the first that is not TRUE is the row's `drop_reason`, `<name>_null` when it was NULL or could not",
        "be evaluated. Predicates see one row: no subqueries, aggregates or `random()`.",
    ]
    for name, section in SECTIONS.items():
        types = get_type_hints(section)
        lines += ["", f"## [{name}]", "", "| key | default | meaning |", "|---|---|---|"]
        for field in dataclasses.fields(section):
            default = json.dumps(field.default, ensure_ascii=False)
            kind = types[field.name].__name__
            lines.append(f"| `{field.name}` ({kind}) | `{default}` | {_cell(field.metadata['about'])} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """docs/errors.md: the stable words for what can go wrong, and the exit codes."""
    lines = [
        "# Errors",
        "",
        '    curate sql demo/store "select * from errors"',
        "",
        "Written from `schemas/errors.py` by `make docs`. A row that fails is one row in the view `errors`, with the",
        "operator that failed on it; it is never kept and never lost. These words do not change between versions.",
        "",
        "| word | meaning |",
        "|---|---|",
        *(f"| `{word}` | {_cell(about)} |" for word, about in ROW_ERRORS.items()),
        "",
        "A shard that fails as a whole is a row of `shards` with an error; the run goes on and ends with exit code 3.",
        "",
        "| word | meaning |",
        "|---|---|",
        *(f"| `{word}` | {_cell(about)} |" for word, about in SHARD_ERRORS.items()),
        "",
        "| exit code | meaning |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | failed or interrupted; run the same command to go on |",
        "| 2 | bad usage or bad recipe: the line names the key, the value and the fix |",
        "| 3 | finished, but a shard or more rows failed than `run.max_failed_share` allows |",
    ]
    return "\n".join(lines) + "\n"


def _table(columns: tuple[Column, ...]) -> list[str]:
    rows = [f"| `{c.name}` | {_type(c)} | {_cell(c.about)} |" for c in columns]
    return ["| column | type | meaning |", "|---|---|---|", *rows]


def _type(column: Column) -> str:
    return re.sub(r"list<\w+: ", "list<", str(column.type))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


VIEWS = """\
## Views and tables of captions.duckdb

| view | a row is | columns |
|---|---|---|
| `samples` | an input row | all of the above |
| `captions` | a caption: raw, or written by some version of a captioner or translator | `row_id, shard, row, kind` (raw, synthetic), `language, text, engine, model, revision, fingerprint, active` |
| `evaluations` | the scores of one caption by one judge of it ([evaluate.md](evaluate.md)) | `row_id, shard, row, fingerprint, language, scorer, length, completeness, correlation, hallucination, subjectivity, reason, found, engine, model, active, mean` |
| `scores` | one number of one row, of every version | `row_id, shard, row, operator, fingerprint, active, name, value` |
| `errors` | a failed row | `row_id, shard, row, operator, error, message` |
| `drops` | a dropped row | `row_id, shard, row, drop_reason, failing` (all predicates that it fails) |
| `operators` | a version of an operator | `operator, fingerprint, active, engine, model, revision, facts` |
| `runs` | a run | `run_id, started, finished, state` (running, finished, interrupted, failed, killed), `rows, kept, dropped, failed, exit_code, recipe, report` |
| `shards` | an input shard of the last run | `shard, uri, format, error, message` |
| `policy` | a predicate of the active policy, in the order in which they judge | `position, name, predicate` |
| `commits` | a part in the index | `path, operator, fingerprint, shard, sequence` |
| `ratings` | a vote that counts ([rating.md](rating.md)) | `event_id, rated_at, campaign, rubric_version, sha256, row_id, rater, tier, flags, part, seconds` |
| `consensus` | an image that people rated, by content (captions that they rated: `consensus_items`) | `sha256, tier, votes, campaign, rule, keep, gold, mean, spread, flags, model_tier, model_keep, probabilities, row_id` |

Behind them, for the product's own use and free to change: `wide_cells` (the active versions side by side) and the view
`wide`, `former_<operator>` (cells of versions that are no longer active), `cell_errors`, `shard_numbers`, `layout`,
`rating_events`, `consensus_items`, `rating_marks`.""".splitlines()

PAGES = {"columns.md": columns_page, "recipe.md": recipe_page, "errors.md": errors_page}


def main() -> None:
    """Write all generated pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
