"""Clients of other programs' APIs."""
