"""What a notebook shows of a run."""

import io
import sys
import types
import unicodedata

import pytest

import headstart
from headstart import progress
from headstart.cli.terminal import print_line
from headstart.progress import Bar, Lines, Notebook, Silent, plain, progress_for_python


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
    progress.report("classes: <b>cat</b>\x1b[31m & dog")
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
    assert len(cell) < shown + 100  # a cell is not rendered anew for every step
    progress.close()
    assert "<progress" not in cell[-1] and "classes: " in cell[-1]


def test_counted_work_leaves_no_bar_in_a_notebook(cell):
    progress = progress_for_python()
    progress.report("evaluating 8 examples")
    with progress.counting("evaluating", 8):
        assert "<progress" in cell[-1]
    assert cell[-1] == "<pre>evaluating 8 examples</pre>"
    with pytest.raises(ValueError), progress.counting("reading labels", 1):
        raise ValueError
    assert cell[-1] == "<pre>evaluating 8 examples</pre>"


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


def test_counted_work_is_shown_beside_other_work_and_then_gone(monkeypatch):
    """A bar of its own; the one before goes on, and nothing runs when both have ended."""
    bar = Bar()
    with bar:
        bar.start("training", 10)
        with bar.counting("evaluating", 20, "texts") as seen:
            monkeypatch.setattr(progress, "SHORT", 0.0)
            seen(5)
            assert [(job.description, job.completed) for job in bar.bar.tasks] == [
                ("training", 0),
                ("evaluating", 5),
            ]
        bar.update(3, {})
        assert [(job.description, job.completed) for job in bar.bar.tasks] == [("training", 3)]
        assert bar.bar.live.is_started
    with pytest.raises(ValueError, match="stop"), bar.counting("reading", 5):
        raise ValueError("stop")
    assert not bar.bar.tasks and not bar.bar.live.is_started


def test_short_counted_work_prints_no_lines(monkeypatch):
    out = io.StringIO()
    lines = Lines(out, every=0.0)
    with lines.counting("reading images", 4) as seen:
        seen(4)
    assert out.getvalue() == ""
    monkeypatch.setattr(progress, "SHORT", 0.0)
    with lines.counting("reading images", 4) as seen:
        seen(1)
        seen(3)
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "reading images 1/4",
        "reading images 4/4",
    ]


def test_counted_work_that_ends_early_is_complete(monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0.0)
    out = io.StringIO()
    with Lines(out, every=0.0).counting("logistic regression", 35, "fits") as seen:
        seen(14)
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "logistic regression 14/35",
        "logistic regression 35/35",
    ]


def test_a_line_is_written_by_one_call(monkeypatch):
    """Two processes of a run write to one stream: a break of its own can come after other text."""
    calls = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", calls.append)
    monkeypatch.setattr(sys, "stderr", stream)
    print_line("headstart: lost", error=True)
    Lines(stream, every=0).report("step 1")
    assert calls == ["headstart: lost\n", "step 1\n"]


def test_plain_text_has_no_control_characters():
    """Of all characters: those of the categories Cc and Cs go, but for line breaks and tabs, and
    those that turn the direction of text around.
    """
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds, turns = ("Cc", "Cs"), ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    kept = "".join(
        c
        for c in every
        if c in "\n\t"
        or (unicodedata.category(c) not in kinds and unicodedata.bidirectional(c) not in turns)
    )
    assert plain(every) == kept
    assert plain("a\udcff\u202eb", keep_bytes=True) == "a\udcffb"
