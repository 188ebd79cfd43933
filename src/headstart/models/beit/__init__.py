"""BERT pre-training of image transformers."""
