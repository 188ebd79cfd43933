"""A model behind HTTP: `headstart serve`, extra `[serve]`."""
