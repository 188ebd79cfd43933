"""Writes src/headstart/__init__.pyi: the public names, as editors and type checkers see them.

python scripts/stubs.py            # writes the file
python scripts/stubs.py --check    # exit code 1 where it is not up to date
"""

import sys
from pathlib import Path

import headstart

FILE = Path(headstart.__file__).with_suffix(".pyi")


def stub() -> str:
    """The text of the stub file."""
    names = headstart._public_names()
    lines = [f'"""{headstart.__doc__.splitlines()[0]}"""', ""]  # type: ignore[union-attr]
    for name, module in sorted(names.items(), key=lambda item: (item[1], item[0])):
        package, _, last = module.rpartition(".")
        if last == name and package == "headstart":
            lines.append(f"from headstart import {name} as {name}")
        else:
            lines.append(f"from {module} import {name} as {name}")
    lines += ["", "__version__: str", "", "__all__ = ["]
    lines += [f'    "{name}",' for name in sorted(names)]
    return "\n".join([*lines, "]", ""])


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(f"{FILE.name} is out of date: run make stubs" if FILE.read_text() != stub() else 0)
    FILE.write_text(stub())
