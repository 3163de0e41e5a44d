"""Models under test: computed here, or asked over the network."""
