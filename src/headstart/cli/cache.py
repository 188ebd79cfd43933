"""`headstart cache`: what the features of networks take on the disk."""

from typing import Annotated, Any

import typer

from headstart.cli.output import with_json

app = typer.Typer(no_args_is_help=True, help="Show or remove cached features of networks.")


def info() -> dict[str, Any]:
    """Show the folder, the size and the limit of the cached features."""
    from headstart.data.features import HASHES, cached_networks, features_folder, limit
    from headstart.errors import counted

    sizes = cached_networks()
    bound, total = limit(), sum(sizes.values())
    networks = {folder.name: size for folder, size in sizes.items() if folder.name != HASHES}
    hashes = total - sum(networks.values())
    number = counted(len(networks), "network")
    print(f"{features_folder()}: {number}, {total / 1e6:.1f} MB")
    print(f"limit {bound / 1e9:g} GB (HEADSTART_CACHE_LIMIT), least recently used removed first")
    for name, size in networks.items():
        print(f"{name}  {size / 1e6:.1f} MB")
    if hashes:
        print(f"{HASHES}  {hashes / 1e6:.1f} MB, by which near duplicates are found")
    values = {"folder": str(features_folder()), "bytes": total, "limit": bound}
    return values | {"networks": networks, "hashes": hashes}


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
