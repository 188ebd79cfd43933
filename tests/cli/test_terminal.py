"""What commands print on a terminal."""

import io
import os
import subprocess
import sys

import pytest

from headstart.cli import terminal


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
