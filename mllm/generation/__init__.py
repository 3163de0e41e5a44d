"""Pictures from CLIP."""
