"""Who does the work, one model a file.

A worker is a callable: `worker(samples) -> columns`, a batch of `workers.sample.Sample` in, one dict of its
declared columns (schemas/columns.py) per sample out, in the same order. A stateless one is a function, one that
holds a model is a class that loads it in `__init__`. A sample that cannot be measured raises
`schemas.errors.RowError`; the engine then finds the culprit by itself and records it, so a worker never has to
catch exceptions for the sake of its neighbours in the batch.
"""
