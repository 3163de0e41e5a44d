"""A GPU that isn't there: see `device`. Taken on in a process of its own, since torch can't let go of a device again."""
