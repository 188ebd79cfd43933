"""`headstart cache`: what the features of networks take on the disk."""

from typing import Annotated, Any

import typer

from headstart.cli.output import with_json

app = typer.Typer(no_args_is_help=True, help="Show or remove cached features of networks.")


def info() -> dict[str, Any]:
    """Show the folder, the size and the limit of the cached features."""
    from headstart.data.features import cached_networks, features_folder, limit
    from headstart.errors import counted

    sizes = cached_networks()
    bound, total = limit(), sum(sizes.values())
    number = counted(len(sizes), "network")
    print(f"{features_folder()}: {number}, {total / 1e6:.1f} MB")
    print(f"limit {bound / 1e9:g} GB (HEADSTART_CACHE_LIMIT), least recently used removed first")
    for folder, size in sizes.items():
        print(f"{folder.name}  {size / 1e6:.1f} MB")
    networks = {folder.name: size for folder, size in sizes.items()}
    return {"folder": str(features_folder()), "bytes": total, "limit": bound, "networks": networks}


def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> dict[str, Any]:
    """Remove all cached features; they are computed again when they are needed."""
    from headstart.data.features import cached_networks, evict, features_folder

    total = sum(cached_networks().values())
    if total and (yes or typer.confirm(f"Remove {total / 1e6:.1f} MB in {features_folder()}?")):
        evict(features_folder(), bound=0)
        print(f"{total / 1e6:.1f} MB removed")
        return {"bytes": total}
    return {"bytes": 0}


for function in (info, clear):
    app.command()(with_json(function, f"cache {function.__name__}"))
