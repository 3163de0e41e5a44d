"""Captions and labels of images → alignment captions, instructions, contrastive pairs and held-out questions."""
