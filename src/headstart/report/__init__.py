"""The report of a run: page, sections, model card, explanations, audit."""
