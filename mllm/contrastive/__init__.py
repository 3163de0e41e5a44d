"""Training CLIP and SigLIP, and what is done with them: zero-shot classification, retrieval, search."""
