"""Benchmarks: a suite is one file in `suites/` with a `measure` function; results become JSON and a table in docs."""
