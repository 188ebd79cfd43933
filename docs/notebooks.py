"""Runs the notebooks, each in a process and an empty folder of its own.

python docs/notebooks.py                       # runs all, and stores what they print
python docs/notebooks.py --check NOTEBOOK      # runs one; fails where it prints something else
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "notebooks"


def run(notebook: dict[str, Any], name: str) -> list[str]:
    """What each code cell prints, from one run of all in order."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile("".join(cell["source"]), name, "exec"), names)
        printed.append(output.getvalue())
    return printed


def stored(notebook: dict[str, Any]) -> list[str]:
    """What each code cell has printed."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(each["text"]) for each in cell["outputs"]) for cell in cells]


def store(notebook: dict[str, Any], printed: list[str]) -> None:
    """Puts what the cells printed below them."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, text) in enumerate(zip(cells, printed, strict=True), start=1):
        output = {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}
        cell.update(execution_count=number, outputs=[output] if text else [])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--write", type=Path, help="run one and store what it prints")
    arguments = parser.parse_args()
    path = arguments.check or arguments.write
    if path is None:
        for each in sorted(HERE.glob("*.ipynb")):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--write", str(each)]
                subprocess.run(command, cwd=folder, check=True)
        return
    notebook = json.loads(path.read_text(encoding="utf-8"))
    printed = run(notebook, path.name)
    if arguments.check:
        for was, now in zip(stored(notebook), printed, strict=True):
            assert was == now, f"{path.name} printed\n{now}\nwhere it stored\n{was}"
        return
    store(notebook, printed)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
