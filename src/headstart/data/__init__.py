"""Data sets: sources, interpretation of columns and labels, splits, images, masks, texts, caches."""
