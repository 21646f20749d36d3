"""Predicates are checked before a run, ordered by the path, and mean the same in the job and in the store."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from curate.errors import UsageError
from curate.policy import compile_policy, gate, verdict_sql

SCHEMA = pa.schema(
    [
        pa.field("license", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sharpness", pa.float32()),
        pa.field("faces", pa.int32()),
        pa.field("tags", pa.list_(pa.string())),
    ]
)
WRITER = {"license": 0, "tags": 0, "width": 1, "height": 1, "sharpness": 2, "faces": 3}


@pytest.mark.parametrize(
    ("predicate", "complaint"),
    [
        ("sharpnes >= 3", "no column 'sharpnes'; did you mean 'sharpness'?"),
        ("width", "gives INTEGER, must be true or false"),
        ("width >", "syntax error"),
        ("width > 3; DROP TABLE x", "Only SELECT"),
        ("1) FROM x WHERE (2", "syntax error"),
        ("width > 0) OR (1 = 1", "syntax error"),
        ("width > 0 AS w", "syntax error"),
        ("width > 0 ORDER BY 1", "syntax error"),
        ("1, 2", "must be true or false"),
        ("width > (SELECT 1)", "subqueries are not possible"),
        ("avg(width) > 3", "aggregates"),
        ("row_number() OVER () = 1", "window functions are not possible"),
        ("random() < 0.5", "must be repeatable"),
        ("now() > '2020-01-01'", "must be repeatable"),
        ("width = 'abc'", "Could not convert"),
        ("no_such_function(width)", "no_such_function"),
    ],
)
def test_a_bad_predicate_is_refused_with_its_name_and_the_reason(predicate: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compile_policy([("mine", predicate)], SCHEMA, WRITER)
    text = str(refusal.value)
    assert complaint in text
    assert "policy.mine" in text
    assert "\n" not in text


def test_predicates_judge_in_the_order_of_the_recipe_but_cheap_ones_before_costly_ones() -> None:
    policy = [("crowd", "faces <= 5"), ("sharp", "sharpness > 1"), ("big", "WIDTH > 9"), ("free", "license = 'cc0'")]
    assert [p.name for p in compile_policy(policy, SCHEMA, WRITER, costly=[3])] == ["sharp", "big", "free", "crowd"]
    assert [p.name for p in compile_policy(policy, SCHEMA, WRITER)] == ["crowd", "sharp", "big", "free"]


def test_columns_are_found_in_any_case_and_lambda_parameters_are_none() -> None:
    sql = "len(list_filter(tags, lambda x: x = 'a')) = 0 AND least(width, HEIGHT) > 3 -- the end"
    (predicate,) = compile_policy([("p", sql)], SCHEMA, WRITER)
    assert predicate.columns == {"tags", "width", "height"}
    assert predicate.after == 1


def test_the_gate_before_an_operator_holds_what_is_known_by_then() -> None:
    predicates = compile_policy([("sharp", "sharpness > 1"), ("crowd", "faces <= 5")], SCHEMA, WRITER)
    assert gate(predicates, 2) is None
    before_faces = gate(predicates, 3)
    assert before_faces is not None
    assert "faces" not in before_faces


@pytest.mark.parametrize(
    ("sharpness", "faces", "answered", "verdict"),
    [
        (2.0, 1, True, None),
        (0.5, 1, True, "sharp"),
        (0.5, None, False, "sharp"),
        (2.0, 9, True, "crowd"),
        (2.0, None, True, "crowd_null"),
        (2.0, None, False, "?"),
        (None, 1, True, "sharp_null"),
    ],
)
def test_null_never_passes_and_what_is_not_computed_is_not_decided(
    sharpness: float | None, faces: int | None, answered: bool, verdict: str | None
) -> None:
    predicates = compile_policy([("sharp", "sharpness > 1"), ("crowd", "faces <= 5")], SCHEMA, WRITER)
    done = ["TRUE", "TRUE", "TRUE", "TRUE" if answered else "FALSE"]
    with duckdb.connect() as db:
        (row,) = db.execute(
            f"SELECT {verdict_sql(predicates, done)} FROM (SELECT ?::FLOAT AS sharpness, ?::INTEGER AS faces)",
            [sharpness, faces],
        ).fetchall()
    assert row == (verdict,)


def test_a_predicate_that_fails_to_evaluate_is_null_and_not_an_end_of_the_run() -> None:
    predicates = compile_policy([("numeric", "license::INTEGER > 3")], SCHEMA, WRITER)
    with duckdb.connect() as db:
        rows = db.execute(
            f"SELECT {verdict_sql(predicates, ['TRUE', 'TRUE'])} FROM (VALUES ('4'), ('2'), ('cc0')) AS t(license)"
        ).fetchall()
    assert rows == [(None,), ("numeric",), ("numeric_null",)]
