"""A page in the browser on which an index of images is searched."""
