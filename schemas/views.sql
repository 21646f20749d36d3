-- The views of the caption store. Names in braces are filled in by curate/store/index.py; docs/columns.md describes
-- every column.

-- One wide row per input row: identity, scores, captions and the verdict of the active policy.
CREATE OR REPLACE VIEW samples AS
SELECT {columns}
FROM (
    SELECT *,
        CASE WHEN error IS NULL THEN nullif(_verdict, '?') END AS drop_reason,
        CASE WHEN error IS NOT NULL THEN FALSE WHEN _verdict = '?' THEN NULL ELSE _verdict IS NULL END AS keep
    FROM (SELECT *, {verdict} AS _verdict FROM wide)
);

-- Every caption of every row: the raw one and its translations, and what each version of each captioner, translator and
-- captioner of posters wrote.
CREATE OR REPLACE VIEW captions AS
SELECT n.shard || ':' || (c._id & 4294967295) AS row_id, n.shard, c._id & 4294967295 AS row, c.* EXCLUDE (_id)
FROM ({captions}) AS c JOIN shard_numbers AS n ON n.number = c._id >> 32;

-- What rules, models and people say of each caption (`curate evaluate`): one row for each caption and judge.
CREATE OR REPLACE VIEW evaluations AS
SELECT e.*, o.engine, o.model, o.active,
    list_avg(list_filter([completeness, correlation, hallucination, subjectivity], lambda x: x IS NOT NULL)) AS mean
FROM (
    SELECT row_id, shard, row, unnest(evaluate_caption) AS fingerprint, unnest(evaluate_kind) AS kind,
        unnest(evaluate_language) AS language,
        unnest(evaluate_scorer) AS scorer, unnest(evaluate_length) AS length, unnest(evaluate_completeness) AS completeness,
        unnest(evaluate_correlation) AS correlation, unnest(evaluate_hallucination) AS hallucination,
        unnest(evaluate_subjectivity) AS subjectivity, unnest(evaluate_reason) AS reason,
        unnest(evaluate_found) AS found
    FROM wide WHERE evaluate_scorer IS NOT NULL
) AS e LEFT JOIN operators AS o ON o.fingerprint = e.fingerprint;

-- Every numeric score in long form, of all versions: what changed when a scorer changed is one GROUP BY away.
CREATE OR REPLACE VIEW scores AS
SELECT n.shard || ':' || (s._id & 4294967295) AS row_id, n.shard, s._id & 4294967295 AS row, s.operator, s.fingerprint,
    s.active, s.name, s.value
FROM ({scores}) AS s JOIN shard_numbers AS n ON n.number = s._id >> 32;

-- One row for each input row that failed, with the operator that failed on it.
CREATE OR REPLACE VIEW errors AS
SELECT n.shard || ':' || (e._id & 4294967295) AS row_id, n.shard, e._id & 4294967295 AS row,
    e.operator, e.error, e.message
FROM cell_errors AS e
JOIN shard_numbers AS n ON n.number = e._id >> 32
JOIN operators AS o ON o.operator = e.operator AND o.fingerprint = e.fingerprint AND o.active;

-- Why rows were dropped, with all predicates that they fail among those whose operators have seen the row.
CREATE OR REPLACE VIEW drops AS
SELECT row_id, shard, row, _verdict AS drop_reason, {failing} AS failing
FROM (SELECT *, {verdict} AS _verdict FROM wide WHERE error IS NULL)
WHERE _verdict <> '?';
