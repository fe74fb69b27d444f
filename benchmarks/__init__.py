"""Measurements beside their yardsticks: `python -m benchmarks [NAME ...]`. Ratios of one run, never single times."""
