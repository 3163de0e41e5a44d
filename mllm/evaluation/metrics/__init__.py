"""Metrics that more than one benchmark or file of answers is scored by; a benchmark's own stands in its file."""
