"""The model families, one package each."""
