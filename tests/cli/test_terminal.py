"""What commands print on a terminal."""

import io

from headstart.cli import terminal


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


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
