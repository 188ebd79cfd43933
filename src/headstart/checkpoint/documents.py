"""JSON files from outside."""

import json
from pathlib import Path
from typing import Any

from headstart.errors import FileFormatError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileFormatError: The file holds none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise FileFormatError(f"{path} holds a {type(values).__name__}; expected an object")
    return values
