"""Data sets: sources, columns and labels, splits, images, masks, texts, caches."""
