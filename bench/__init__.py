"""Benchmarks of the library's functions: `python -m bench --help`, docs/benchmarks.md."""
