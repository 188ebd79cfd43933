"""What commands print on a terminal."""

import io
import logging
import os
import subprocess
import sys
import warnings

import pytest

from headstart.cli import terminal
from headstart.cli.app import main
from headstart.cli.terminal import print_line
from headstart.errors import listed
from headstart.progress import plain


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_that_pytorch_is_loaded():
    import pty

    ours, theirs = pty.openpty()
    code = "from headstart.cli.terminal import load_torch; load_torch()"
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0 and "loading PyTorch" in shown


def test_pytorch_is_imported_without_collections_of_garbage():
    code = """
import gc
from headstart.cli.terminal import load_torch
passes = []
gc.callbacks.append(lambda phase, info: passes.append(info["generation"]))
load_torch()
print(len(passes), gc.isenabled(), gc.get_freeze_count())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    passes, enabled, frozen = done.stdout.split()
    assert (passes, enabled) == ("0", "True") and int(frozen) > 100_000


def test_rows_are_shown_as_they_become_known(monkeypatch):
    """The first row is on the screen before the last one is made; columns stay aligned."""
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "dumb")  # no bold head
    monkeypatch.setattr(terminal, "PATIENCE", -1.0)
    seen = []

    def rows():
        for name in ("first.jpg", "b.jpg", "third.jpg"):
            seen.append(screen.getvalue())
            yield name, "cat"

    terminal.print_table("", ("image", "top 1"), rows())
    assert "first.jpg" in seen[1] and "b.jpg" not in seen[1] and "b.jpg" in seen[2]
    lines = screen.getvalue().splitlines()
    assert [line.split() for line in lines] == [
        ["image", "top", "1"],
        ["first.jpg", "cat"],
        ["b.jpg", "cat"],
        ["third.jpg", "cat"],
    ]
    assert {line.index("cat") for line in lines[1:]} == {lines[0].index("top")}


def test_an_empty_table_shows_its_head(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    terminal.print_table("", ("image", "top 1"), [])
    assert "image" in screen.getvalue()


NAMES = [
    ("a[bold]x[/bold].png", "[/x] $a$ :smile:"),
    ("\x1b[31mred\x9b31m\x07", "two\tcells\nof one"),
    ("[link=http://a]b", "\ud800"),
]


@pytest.mark.parametrize("screen", [Screen, io.StringIO])
def test_names_in_tables_are_data(monkeypatch, screen):
    """Brackets are not markup; no control character, no second row or cell."""
    out = screen()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "dumb")
    terminal.print_table("[/title]", ("image[/]", "top 1"), NAMES)
    shown = out.getvalue()
    for cell in ("a[bold]x[/bold].png", "[/x] $a$ :smile:", "[31mred31m", "two cells of one"):
        assert cell in shown
    rows = shown.splitlines()[-3:]
    first = ["a[bold]x[/bold].png", "[31mred31m", "[link=http://a]b"]
    assert [row.split()[0] for row in rows] == first
    assert screen is Screen or [row.count("\t") for row in rows] == [1, 1, 1]
    assert plain(shown) == shown


def test_messages_hold_no_control_characters(capsys):
    """Of errors, warnings and the log."""
    with pytest.raises(SystemExit), terminal.plain_warnings():
        warnings.simplefilter("always")
        warnings.warn("a \x1b[31mname", stacklevel=1)
        terminal.print_line("no \x9b31msuch", error=True)
        main(["predict", "no\x1b[31msuch", "x\x9b.jpg"])
    shown = capsys.readouterr().err
    assert "a [31mname" in shown and "no 31msuch" in shown
    assert plain(shown) == shown
    record = logging.LogRecord("headstart", logging.WARNING, "", 0, "%s \x07b", ("\x1ba",), None)
    assert terminal.PlainFormatter().format(record) == "a b"


def test_names_of_any_length_are_cut_in_messages(capsys):
    name = "A" * 1_000_000 + "z"
    assert len(listed([name, "b"])) < 1000 and listed([name, "b"]).endswith("z, b")
    print_line(f"first\n{name} is a class")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "first" and len(second) < 5000 and second.endswith("z is a class")
