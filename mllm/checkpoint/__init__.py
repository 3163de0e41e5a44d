"""Formats of models on disk, one file each, and the one door to them (`load`)."""
