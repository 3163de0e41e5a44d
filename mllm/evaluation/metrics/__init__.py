"""Metrics: functions from an answer and its references to a score, one file each."""
