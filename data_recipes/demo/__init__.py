"""The generator of the demo's data."""
