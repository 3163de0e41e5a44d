"""Preference tuning: a model learns which of two answers is wanted, by their likelihood against a reference."""
