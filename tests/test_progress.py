"""What a notebook shows of a run."""

import sys
import types

import pytest

import headstart
from headstart.progress import Notebook, Silent, progress_for_python


@pytest.fixture
def cell(monkeypatch):
    """Everything that a cell of a notebook has shown; the last is what one sees."""
    shown = []
    place = types.SimpleNamespace(update=shown.append)
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda first, display_id: place
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    return shown


def test_a_program_gets_no_output_that_it_did_not_request():
    assert isinstance(progress_for_python(), Silent)


def test_a_notebook_shows_one_bar_and_the_lines_above_it(cell):
    progress = progress_for_python()
    assert isinstance(progress, Notebook)
    progress.say("classes: <b>cat</b>\x1b[31m & dog")
    progress.start("features <i>", 40)
    progress.update(40, {"accuracy": 0.5}, 12.4)
    assert cell[-1] == (
        "<pre>classes: &lt;b&gt;cat&lt;/b&gt;[31m &amp; dog</pre>"
        '<progress value="40" max="40"></progress>'
        " features &lt;i&gt; 40/40  accuracy 50.0%  12 img/s"
    )
    shown = len(cell)
    progress.start("train", 1000)
    for step in range(1, 1000):
        progress.update(step, {})
    assert len(cell) < shown + 100  # a cell is not drawn anew for every step
    progress.close()
    assert "<progress" not in cell[-1] and "classes: " in cell[-1]


@pytest.mark.slow
def test_train_shows_itself_in_a_notebook(cell, photos, tiny_model, tmp_path):
    sizes = {"steps": 2, "batch_size": 4, "resize": 24, "crop": 20, "device": "cpu"}
    result = headstart.train(photos, model=tiny_model, out=tmp_path / "run", **sizes)
    assert any("<progress" in each for each in cell) and str(tmp_path / "run") in cell[-1]
    assert repr(result).startswith("Result('") and "<table>" in result._repr_html_()
    classify = headstart.pipeline("image-classification", str(tmp_path / "run"), device="cpu")
    assert repr(classify) == (
        f"ImageClassificationPipeline({str(tmp_path / 'run')!r}, BitForImageClassification on cpu)"
    )
