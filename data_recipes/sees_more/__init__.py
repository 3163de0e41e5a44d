"""A benchmark of seeing more: small print in large pictures, several pictures at once, and clips."""
