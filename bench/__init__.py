"""Reproducible benchmarks of gymq: `python -m bench --help`, and `README.md` for what is measured and what came out."""
