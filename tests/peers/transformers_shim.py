"""A pytest plugin: transformers' own tests see our classes under transformers' names.

`test_transformers_suite.py` loads it by `-p transformers_shim` in a process of its own. The result
of every test is written as JSON to the file that `HEADSTART_SUITE_RESULTS` names.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import transformers

import headstart

# Mix-ins that the source distribution lacks: the pipelines' needs networks of the Hub, and none of
# the four families generates.
NOT_THERE = {
    "tests.test_pipeline_mixin": "PipelineTesterMixin",
    "tests.generation": None,
    "tests.generation.test_utils": "GenerationTesterMixin",
}
FAMILIES = ("bit", "cvt", "beit", "yoso")
RESULTS: dict[str, str] = {}


def replace_classes() -> None:
    """Put our class in place of each of the same name, at the top and in the families' modules."""
    names = [name for name in dir(headstart) if name.lower().startswith(FAMILIES)]
    for name in names:
        if hasattr(transformers, name):
            setattr(transformers, name, getattr(headstart, name))
    for family in FAMILIES:
        for kind in ("modeling", "configuration", "image_processing"):
            module = sys.modules.get(f"transformers.models.{family}.{kind}_{family}")
            for name in names if module else ():
                if hasattr(module, name):
                    setattr(module, name, getattr(headstart, name))


def leave_out() -> None:
    """Put an empty class in place of each mix-in of `NOT_THERE`."""
    for name, mixin in NOT_THERE.items():
        sys.modules[name] = module = ModuleType(name)
        if mixin:
            setattr(module, mixin, type(mixin, (), {}))


def pytest_configure() -> None:
    replace_classes()
    leave_out()


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        RESULTS[report.nodeid.split("tests/models/")[-1]] = report.outcome


def pytest_sessionfinish() -> None:
    Path(os.environ["HEADSTART_SUITE_RESULTS"]).write_text(json.dumps(RESULTS))
