"""Answers that are verified: prompts about drawings of known categories, to learn from a model's own answers."""
