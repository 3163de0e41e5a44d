"""What generated pictures are worth, as numbers computed from features of a dual encoder, and from pixels."""
