"""The `headstart` command: one file for each group of commands."""

from headstart.cli.app import main as main
