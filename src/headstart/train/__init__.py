"""Transfer learning: data, recipes, the loop, the report."""
