"""Images: decoding, resizing, image processors."""
