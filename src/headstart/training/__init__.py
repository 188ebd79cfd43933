"""Training: the run, the loop, checkpoints, optimizers, cost estimates, results."""
