"""Fast inference: optimise, export, quantise."""
