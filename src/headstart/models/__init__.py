"""One room a family."""
