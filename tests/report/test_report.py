"""Pieces of the report."""

import base64

from headstart.report.page import figure_source, new_figure


def test_figures_hold_words_of_every_script():
    """matplotlib's own font lacks most of them: it would warn, and draw boxes."""
    figure = new_figure()
    figure.subplots().set_title("grün 青 кот")
    svg = base64.b64decode(figure_source(figure).partition("base64,")[2]).decode()
    assert "grün 青 кот</text>" in svg
