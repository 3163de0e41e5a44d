"""Misalignment (Cai et al. 2025, arXiv:2504.10143): what captions that omit and alter semantics leave learned."""
