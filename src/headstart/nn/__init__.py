"""Base model and blocks, one file a framework."""
