"""The `headstart` command: registers every command and turns errors into one line and an exit code.

Nothing heavy is imported before a command needs it, so that `headstart --help` is quick.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

try:
    import typer
except ImportError:
    sys.exit(
        "headstart: the command line needs typer and rich; install them with: pip install"
        " 'headstart[train]'"
    )

from headstart import threads
from headstart.cli import (
    cache,
    data,
    distill,
    embed,
    engine,
    label,
    models,
    output,
    plan,
    predict,
    serve,
    skill,
    train,
    update,
    verify,
)
from headstart.cli.limits import with_pixel_limit
from headstart.cli.output import with_json
from headstart.cli.spelling import Option, options_of, spelled
from headstart.cli.terminal import plain_warnings, print_line
from headstart.errors import HeadstartError

USAGE_ERROR, ENVIRONMENT_ERROR, INTERRUPTED = 2, 4, 130
WRONG_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

COMMANDS = {
    "Train": (
        train.train,
        train.evaluate,
        update.update,
        update.forget,
        plan.plan,
        distill.distill,
        train.demo,
    ),
    "Data": (data.audit, label.label),
    "Use a model": (predict.predict, embed.embed, embed.search, predict.explain),
    "Deploy": (engine.optimize, engine.export, engine.check, serve.serve),
    "Checkpoints": (models.models, models.info, models.convert, verify.verify),
    "Scripts": (skill.skill,),
}
READ_IMAGES = {
    train.train, train.evaluate, update.update, plan.plan, distill.distill, data.audit, label.label,
    predict.predict, embed.embed, predict.explain,
}  # fmt: skip


def _version(requested: bool) -> None:
    if requested:
        from headstart._version import __version__

        print(f"headstart {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
]


def root(version: VersionOption = False) -> None:
    """Tune pretrained vision and text models to your own data."""


def application(name: str = "") -> typer.Typer:
    """The command line with every command, or only the one of this name where there is one.

    Typer reads the signature of every command at the start, which takes a twentieth of a second.
    """
    app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.callback()(root)
    every = {each.__name__: (panel, each) for panel, some in COMMANDS.items() for each in some}
    for panel, function in [every[name]] if name in every else every.values():
        command = with_pixel_limit(function) if function in READ_IMAGES else function
        app.command(rich_help_panel=panel)(with_json(command))
    if name not in every:
        app.add_typer(cache.app, name="cache", rich_help_panel="Data")
    return app


def command_options(name: str) -> dict[str, Option]:
    """The options of a command; none of a name that is not a command's."""
    group: Any = typer.main.get_command(application(name))
    command = group.commands.get(name)
    return {} if command is None else options_of(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command. What is not a fault of headstart is one clear line and an exit code.

    2 the call, 3 the data, 4 this machine or the network, 130 interrupted; a fault of headstart is
    a traceback and 1. With `--json` an error is a line of JSON too.
    """
    threads.prepare()
    output.prints_json(None)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with plain_warnings():
            application(*given[:1])(args=arguments, standalone_mode=True)
    except HeadstartError as error:
        message = spelled(str(error), command_options(given[0]) if given else {})
        message = message.removeprefix("options: ")  # where the values of a recipe come from
        output.emit_failure(error, message)
        _stop(message, error.exit_code)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        what = f"{error.strerror or error}{where}"
        call = isinstance(error, WRONG_PATHS)
        output.emit_error("path" if call else "system", what, "check the path and the disk")
        _stop(what, 2 if call else ENVIRONMENT_ERROR)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise  # the second one is PyTorch's, of a GPU
        what = f"out of memory: {error}"
        output.emit_error("memory", what, "smaller batches, or a smaller model")
        _stop(what, ENVIRONMENT_ERROR)
    except KeyboardInterrupt:
        output.emit_error("interrupted", "interrupted", "run it again")
        _stop("interrupted", INTERRUPTED)
    except SystemExit as error:
        if error.code == USAGE_ERROR and "--json" in given:
            what = "the command line is not valid: see standard error"
            output.emit_usage(given, what)
        if error.code == INTERRUPTED:  # of the command-line library, which says nothing
            print_line("headstart: interrupted", error=True)
            output.emit_error("interrupted", "interrupted", "run it again")
        raise
    finally:
        output.emit_fault(sys.exception())


def _stop(message: str, code: int) -> None:
    if os.environ.get("RANK", "0") != "0":
        # what ended every process is said by the first; the launcher ends the others meanwhile
        time.sleep(2)
    print_line(f"headstart: {message}", error=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
