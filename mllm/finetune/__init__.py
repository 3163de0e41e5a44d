"""Alignment and instruction tuning."""
