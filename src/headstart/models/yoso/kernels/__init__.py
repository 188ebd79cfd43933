"""Fast versions of sampled attention."""
