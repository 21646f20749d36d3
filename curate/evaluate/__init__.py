"""Captioners compared as Kolors compared its own: length, completeness, correlation, hallucination, subjectivity, 1..5.

    curate evaluate demo/store

run.py         the captions of some pictures, scored by all judges there are, compared and published
proxies.py     the five criteria by rule, from words and measurements
lexicon.py     the words and numbers of the rules (lexicon.v1.toml)
judge.py       a multimodal model as the judge (judge.v1.toml), every answer kept
people.py      votes of campaigns over captions (curate/rate, rubrics/caption-*.toml)
compare.py     means, paired differences, agreement, with intervals
show.py        the table, csv, json
page.py        the page

Scores are columns of the derived operator `evaluate` and rows of the view `evaluations` (docs/evaluate.md).
"""
