"""The `headstart` command: registers every command and turns errors into one line and an exit code.

Nothing heavy is imported before a command needs it, so that `headstart --help` is quick.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated

try:
    import typer
except ImportError:
    sys.exit(
        "headstart: the command line needs typer and rich; install them with: pip install"
        " 'headstart[train]'"
    )

from headstart import threads
from headstart.cli import cache, data, distill, embed, engine, models, predict, serve, train, verify
from headstart.cli.terminal import plain_warnings
from headstart.errors import HeadstartError, TrainingInterrupted

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

COMMANDS = {
    "Train": (train.train, train.evaluate, distill.distill, train.demo),
    "Data": (data.audit,),
    "Use a model": (predict.predict, embed.embed, embed.search, predict.explain),
    "Deploy": (engine.optimize, engine.export, serve.serve),
    "Checkpoints": (models.models, models.info, models.convert, verify.verify),
}


def _version(asked: bool) -> None:
    if asked:
        from headstart._version import __version__

        print(f"headstart {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Say the version, and stop."),
]


def root(version: VersionOption = False) -> None:
    """Tune pretrained vision and text models to your own data."""


app.callback()(root)
for panel, functions in COMMANDS.items():
    for function in functions:
        app.command(rich_help_panel=panel)(function)
app.add_typer(cache.app, name="cache", rich_help_panel="Data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. What a user can cause is one clear line and exit code 2.

    An interrupted run is 130.
    """
    threads.prepare()
    try:
        with plain_warnings():
            app(args=arguments, standalone_mode=True)
    except TrainingInterrupted as error:
        _stop(str(error), 130)
    except HeadstartError as error:
        _stop(str(error), 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _stop(f"{error.strerror or error}{where}", 2)
    except KeyboardInterrupt:
        _stop("interrupted", 130)


def _stop(message: str, code: int) -> None:
    if os.environ.get("RANK", "0") != "0":
        # what ended every process is said by the first; the launcher ends the others meanwhile
        time.sleep(2)
    print(f"headstart: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
