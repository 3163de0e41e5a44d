"""Pictures from CLIP's two sides: diffusion models that are trained, loaded, sampled and judged."""
