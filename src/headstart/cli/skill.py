"""The command `headstart skill`."""

from importlib.resources import files


def skill() -> dict[str, str]:
    """Print a SKILL.md: how a coding agent uses headstart.

    Example: [bold]headstart skill > SKILL.md[/bold]
    """
    text = files("headstart.package_data").joinpath("skill.md").read_text(encoding="utf-8")
    print(text, end="")
    return {"skill": text}
