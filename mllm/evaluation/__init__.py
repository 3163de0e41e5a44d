"""Evaluation: benchmarks, metrics, the runner with its blind controls, and the report."""
