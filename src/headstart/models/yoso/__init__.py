"""You only sample (almost) once."""
