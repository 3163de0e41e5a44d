"""Group-relative policy optimization: a model learns from the rewards of its own answers (Shao et al. 2024)."""
