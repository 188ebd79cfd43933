"""Frozen features of a network, and heads fitted on them."""
