"""`headstart cache`: what the features of networks take on the disk."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Show or remove cached features of networks.")


def info() -> None:
    """Show the folder, the size and the limit of the cached features."""
    from headstart.data.features import cached_networks, features_folder, limit

    sizes = cached_networks()
    print(f"{features_folder()}: {len(sizes)} networks, {sum(sizes.values()) / 1e9:.2f} GB")
    print(f"limit {limit() / 1e9:g} GB (HEADSTART_CACHE_LIMIT), least recently used removed first")
    for folder, size in sizes.items():
        print(f"{folder.name}  {size / 1e6:.1f} MB")


def clear(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Remove all cached features; they are computed again when they are needed."""
    from headstart.data.features import cached_networks, evict, features_folder

    total = sum(cached_networks().values())
    if total and (yes or typer.confirm(f"Remove {total / 1e6:.1f} MB in {features_folder()}?")):
        evict(features_folder(), bound=0)
        print(f"{total / 1e6:.1f} MB removed")


for function in (info, clear):
    app.command()(function)
