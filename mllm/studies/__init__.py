"""Studies: they may import everything, and nothing imports them."""
