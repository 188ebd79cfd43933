"""Messages of the library, as the command line says them."""

import ast
import re
from pathlib import Path

import pytest

import headstart
from command_line import call
from headstart.cli.app import COMMANDS, command_options
from headstart.cli.spelling import Option, spelled
from photo_data import make_class_folders, photos, tiny_model  # noqa: F401 - fixtures

OPTIONS = {
    "max_error": Option("--max-error", False),
    "full": Option("--full", True),
    "lr": Option("--lr", False),
    "dynamic": Option("--dynamic", False),
}
NAMES = [function.__name__ for some in COMMANDS.values() for function in some]


def test_names_become_options():
    for text, expected in (
        ("max_error is for full=True", "--max-error is for --full"),
        ("max_error=2; it must be", "--max-error 2; it must be"),
        ("lr='a b': no", "--lr a b: no"),
        ("lr=0.5. It", "--lr 0.5. It"),
        ("lr=[0.1, 0.2]; two", "--lr [0.1, 0.2]; two"),
        ("it decides dynamic= itself", "it decides --dynamic itself"),
        ("full=False, lr=None", "no --full, no --lr"),
        ("has no option 'max_error'", "has no option --max-error"),
        ("the column 'max_error'", "the column 'max_error'"),
        ("/tmp/max_error/lr=3/full=True.csv", "/tmp/max_error/lr=3/full=True.csv"),
        ("--set lr=0.01,0.03 has", "--set lr=0.01,0.03 has"),
        ("wings=2 is full of lr", "wings=2 is full of lr"),
    ):
        assert spelled(text, OPTIONS) == expected


def text_of(node: ast.expr) -> str | None:
    """A text in the source, with 7 in place of what is known only when it is shown."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (each.value if isinstance(each, ast.Constant) else "7" for each in node.values)
        return "".join(map(str, parts))
    return None


def messages() -> list[str]:
    """The texts of every error that the package raises."""
    found = []
    for file in sorted(Path(headstart.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found += [text for each in node.exc.args if (text := text_of(each)) is not None]
    return found


def test_no_message_keeps_the_spelling_of_python():
    """No option of a command stays a keyword argument, in any message that the package has."""
    texts, changed = messages(), set()
    assert len(texts) > 500
    for command in NAMES:
        options = command_options(command)
        assert options, command
        wanted = "|".join(options)
        long = "|".join(name for name in options if "_" in name) or "(?!)"
        python = re.compile(rf"(?<![-\w./'\"(])(?:(?:{wanted})=|(?:{long})\b)")
        for text in texts:
            shown = spelled(text, options)
            changed |= {text} if shown != text else set()
            left = python.search(re.sub(r"--(set|option|column) \w+=\S*", "", shown))
            assert left is None, (command, text, shown)
    assert len(changed) > 50, len(changed)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("export", "MODEL", "--out", "x.onnx", "--max-error", "0.1"), "--max-error is for --full"),
        (("train", "DATA", "--draws", "2", "--out", "new"), "--draws 2 are choices"),
        (("train", "DATA", "--max-error", "2", "--out", "new"), "--max-error 2; it must be above"),
        (("train", "DATA", "--epochs", "-1", "--out", "new"), "--epochs -1"),
        (("distill", "MODEL", "DATA", "--student", "MODEL", "--temperature", "-1", "--out", "new"),
         "--temperature -1"),
        (("train", "DATA", "--device", "cuda:9", "--out", "new"), "--device cuda:9"),
        (("optimize", "MODEL", "--out", "new", "--precision", "int9"), "--precision int9"),
        (("optimize", "MODEL", "--out", "new", "--dynamic", "width"), "--dynamic width"),
    ],
)  # fmt: skip
def test_errors_of_commands_name_options(
    words,
    expected,
    photos,  # noqa: F811
    tiny_model,  # noqa: F811
    tmp_path,
    capsys,
):
    places = {"MODEL": str(tiny_model), "DATA": str(photos), "new": str(tmp_path / "new")}
    given = [places.get(word, word) for word in words]
    if words[0] == "train":
        given += ["--model", str(tiny_model)]
    code, _, err = call(capsys, *given)
    assert code == 2 and expected in err, err
    code, out, _ = call(capsys, *given, "--json")
    assert code == 2 and expected.partition("; ")[0] in out, out
