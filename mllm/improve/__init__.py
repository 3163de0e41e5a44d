"""Rounds in which a model answers, its answers are verified, and it learns from the better ones."""
