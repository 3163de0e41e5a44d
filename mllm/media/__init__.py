"""Images: decoding untrusted files, preparing pixels, and counting the tokens an image becomes."""
