"""Makes the images of the terminal and of the report that README and the docs show, from real
runs.

    python docs/images.py PHOTOS        # PHOTOS: class folders, or train/ and val/ with class
    folders

Writes docs/images/demo.svg, train.svg and report.png. Needs `pip install 'headstart[docs]'`, and
Chromium for the last.
"""

import fcntl
import io
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from PIL import Image
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent / "images"
WIDTH, HEIGHT = 104, 60


def screen_of(command: list[str], folder: Path) -> pyte.Screen:
    """Runs a command on a terminal of its own and returns what is on its screen at the end."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.ByteStream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color"}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        stream.feed(data)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit("\n".join(screen.display).rstrip())
    return screen


def write_svg(screen: pyte.Screen, shown: str, path: Path) -> None:
    """The screen as an image, under the line that was typed."""
    lines = [Text.assemble(("$ ", "green"), (shown, "bold"))]
    for row in range(HEIGHT):
        line = Text()
        for column in range(WIDTH):
            cell = screen.buffer[row][column]
            color = {"brown": "yellow"}.get(
                cell.fg, f"#{cell.fg}" if re.fullmatch("[0-9a-f]{6}", cell.fg) else cell.fg
            )
            line.append(cell.data, f"{'bold ' * cell.bold}{color.replace('bright', 'bright_')}")
        line.rstrip()
        lines.append(line)
    while not lines[-1].plain:
        lines.pop()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line)
    # fonts of another site
    svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="headstart"), flags=re.S)
    path.write_text(svg, encoding="utf-8")


def photograph(page: Path, path: Path, width: int = 1000, height: int = 1250) -> None:
    """The top of a page as Chromium shows it, in few colors."""
    chromium = next(
        name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)
    )
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
        ]
        subprocess.run(
            [chromium, *options, f"--screenshot={shot}", page.resolve().as_uri()],
            check=True,
            capture_output=True,
        )
        Image.open(shot).convert("RGB").quantize(96).save(path, optimize=True)


def main() -> None:
    """Makes all three."""
    photos = Path(sys.argv[1]).resolve()
    HERE.mkdir(exist_ok=True)
    headstart = shutil.which("headstart", path=str(Path(sys.executable).parent)) or "headstart"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photos").symlink_to(photos)
        typed = "headstart train photos/ --model bit-mini --tune head --out runs/photos"
        write_svg(screen_of([headstart, *typed.split()[1:]], folder), typed, HERE / "train.svg")
        write_svg(screen_of([headstart, "demo"], folder), "headstart demo", HERE / "demo.svg")
        photograph(folder / "runs" / "demo" / "report.html", HERE / "report.png")


if __name__ == "__main__":
    main()
