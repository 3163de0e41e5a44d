"""Adapting a frozen dual encoder to a few labelled images, on features that are computed once."""
