"""Runs the command in this process."""

from headstart.cli import app as cli


def call(capsys, *arguments):
    """Runs a command in this process: exit code, standard output, standard error."""
    try:
        cli.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    out, err = capsys.readouterr()
    return code, out, err
