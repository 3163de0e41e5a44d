"""Models from and to other layouts: Hugging Face LLaVA, GGUF."""
