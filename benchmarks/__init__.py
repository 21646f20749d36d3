"""Measurements, each a module of its own: `python -m benchmarks.<name>`; docs/benchmarks.md has targets and figures.

Each prints a table for people and a last line `RESULT ` with the same figures as JSON, which `benchmarks.run` collects.
"""
