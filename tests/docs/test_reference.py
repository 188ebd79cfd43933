"""Docstrings of the public names: complete, true to the signature, with examples that run."""

import dataclasses
import doctest
import inspect
import re
import subprocess
import sys

import pytest

import headstart
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import reference  # noqa: E402 - beside the pages, which mkdocs builds with it

sys.path.remove(str(ROOT / "docs"))

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


def pages_of_the_reference() -> dict[str, list[str]]:
    """Name → pages of the reference that describe it."""
    found: dict[str, list[str]] = {}
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in reference.names(page.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(page.name)
    return found


def test_every_public_name_is_in_the_reference_once():
    found = pages_of_the_reference()
    assert set(NAMES) - set(found) == set()
    assert {name: pages for name, pages in found.items() if len(pages) > 1} == {}
    errors = {f"errors.{name}" for name, each in vars(headstart.errors).items()
              if inspect.isclass(each) and each.__module__ == "headstart.errors"}  # fmt: skip
    assert errors <= set(found)


def is_config(thing) -> bool:
    return dataclasses.is_dataclass(thing) and thing.__name__.endswith("Config")


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_gives_defaults_and_methods(name):
    """Each parameter is a row with its default; `__call__` and `from_pretrained` are there."""
    pages = {each: found[0] for each, found in pages_of_the_reference().items()}
    text, thing = reference.entry(name, pages), getattr(headstart, name)
    if inspect.isclass(thing) and thing.__name__ != name:
        assert f"Another name of [`{thing.__name__}`]" in text
        return
    fields = {each.name: each for each in dataclasses.fields(thing)} if is_config(thing) else {}
    for key, each in inspect.signature(thing).parameters.items():
        if each.default is each.empty or callable(each.default):
            continue
        made = repr(each.default) == "<factory>"  # anew for each object
        value = repr(fields[key].default_factory() if made and key in fields else each.default)
        if not made or fields:
            assert f"{key}={value}" in text
        if fields:
            shown = re.escape(reference.code(value))
            assert re.search(rf"\| `{key}` \|.*\| {shown} \|", text)
    for method in ("from_pretrained", "save_pretrained", "forward"):
        if hasattr(thing, method) and getattr(thing, method).__module__.startswith("headstart"):
            assert f"`{method}`" in text, method
    assert not fields or not re.search(r"^\| `\w+` \|.*\| required \|", text.split("####")[0], re.M)
