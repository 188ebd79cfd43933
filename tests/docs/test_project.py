"""The project's own documents agree with each other and with the code."""

import re
import tomllib

from conftest import ROOT
from headstart._version import __version__


def test_version_and_changelog_agree():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    newest = "Unreleased" if "dev" in __version__ else __version__
    assert headings[0].startswith(newest)
    sections = set(re.findall(r"^### (.+)$", text.split("\n## ")[1], re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_changelog_entry_is_one_line():
    newest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    for line in newest.splitlines()[1:]:
        assert not line or line.startswith(("- ", "### ")), line


def test_make_test_installs_what_the_suite_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = re.search(r'-e "\.\[(train,[^\]]*dev[^\]]*)\]"', (ROOT / "Makefile").read_text())[1]
    assert set(wanted.split(",")) <= set(extras)
