"""Convolutional vision transformer."""
