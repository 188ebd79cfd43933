"""The README's Python runs and prints what it says; its links lead somewhere."""

import re
from pathlib import Path

import pytest

from conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_prints_what_it_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```\n(?:```\n(.*?)```)?", TEXT, flags=re.S)
    assert blocks
    for code, printed in blocks:
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert "://" in target or (folder / target).exists(), f"{page} links to {target}"


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", TEXT, flags=re.M):
        assert f"\n{target}:" in makefile
    assert Path(ROOT / ".ci" / "run").read_text(encoding="utf-8").count("make test") == 1
