"""A package, so that `benchmarks/evaluation.py` does not take its name."""
