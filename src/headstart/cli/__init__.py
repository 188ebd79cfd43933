"""The headstart command: one file for each group of commands."""
