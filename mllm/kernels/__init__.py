"""Attention within packed rows: a module for each way of computing it, and the choice among them."""
