"""What a loaded model answers, as plain Python values: one file for each task."""
