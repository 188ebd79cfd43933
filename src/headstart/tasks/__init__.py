"""Tasks: how an example becomes tensors, and its head, loss and metrics."""
