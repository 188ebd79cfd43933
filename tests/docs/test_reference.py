"""Docstrings of the public names: complete, true to the signature, with examples that run."""

import doctest
import inspect
import re
import subprocess
import sys

import pytest

import headstart
from conftest import ROOT

NAMES = [name for name in headstart.__all__ if name != "errors"]
# These choose a framework for their process, so their examples run in another one.
OTHER_FRAMEWORKS = [name for name in NAMES if re.match("Flax.*Beit|TFCvt|KerasCvt", name)]
RUN = """
import doctest, sys, headstart
for name in sys.argv[1:]:
    found = doctest.DocTestFinder(recurse=False).find(getattr(headstart, name), name, globs={})
    assert sum(doctest.DocTestRunner().run(test).failed for test in found) == 0, name
"""


def documented(thing) -> set[str]:
    """Names below `Args:` of a docstring."""
    text = inspect.getdoc(thing) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\w|\Z)", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^    \*{0,2}(\w+):", section[1], re.MULTILINE)) if section else set()


def real(thing) -> set[str]:
    """Names of the parameters of a callable."""
    return set(inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_documented_parameters_are_the_real_ones(name):
    thing = getattr(headstart, name)
    described = documented(thing)
    variable = {
        each.name
        for each in inspect.signature(thing).parameters.values()
        if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    }
    if described:
        assert described - real(thing) == set(), "documented, but no parameter"
        assert real(thing) - described - variable == set(), "not documented"
    elif inspect.isfunction(thing):
        assert not real(thing)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHER_FRAMEWORKS])
def test_examples_run(name):
    thing = getattr(headstart, name)
    found = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    assert sum(len(test.examples) for test in found) >= 2, f"{name} has no example"
    assert sum(doctest.DocTestRunner().run(test).failed for test in found) == 0


def test_examples_of_the_other_frameworks_run():
    for name in OTHER_FRAMEWORKS:
        assert ">>>" in (inspect.getdoc(getattr(headstart, name)) or ""), f"{name} has no example"
    for family in ("TFCvt|KerasCvt", "Flax"):
        names = [name for name in OTHER_FRAMEWORKS if re.match(family, name)]
        command = [sys.executable, "-c", RUN, *names]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
