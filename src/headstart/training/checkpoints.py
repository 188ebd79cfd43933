"""Checkpoints of a run: written whole or not at all, checked before they are used.

A checkpoint is a folder `step-00000100` with tensors, state and a manifest of sizes and hashes. It
is made under another name, flushed to the disk and then renamed, so that a folder of the right name
is complete unless the disk itself lost something; the manifest finds that too.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from headstart.checkpoint.documents import read_object

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
KEPT = 2  # the newest, and the one before it in case the newest is damaged


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Args:
        step: Updates that were done.
        tensors: Weights and optimizer, by name.
        state: Everything else, as JSON knows it.
        damaged: Newer checkpoints that were passed over, with the reason.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    damaged: list[str] = field(default_factory=list)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes a checkpoint and removes those before the last two.

    Args:
        folder: Holds the checkpoints of one run.
        step: Updates that were done.
        tensors: Weights and optimizer, by name. Tensors that share memory are written once each.
        state: Everything else, as JSON knows it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}"
    draft = folder / f".{path.name}"
    for left_over in folder.glob(".step-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        draft.mkdir()
        try:
            save_file(
                {
                    name: tensor.detach().cpu().contiguous().clone()
                    for name, tensor in tensors.items()
                },
                draft / TENSORS,
            )
        except SafetensorError as error:  # a full disk, as safetensors says it
            raise OSError(f"cannot write the checkpoint {path}: {error}") from None
        (draft / STATE).write_text(json.dumps(dict(state) | {"step": step}), encoding="utf-8")
        manifest = {
            name: {"size": (draft / name).stat().st_size, "sha256": file_hash(draft / name)}
            for name in (TENSORS, STATE)
        }
        (draft / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        for name in (TENSORS, STATE, MANIFEST):
            flush_file(draft / name)
        if path.exists():  # the same step again, after a resume
            shutil.rmtree(path)
        draft.rename(path)
        flush_file(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, or None.

    Damaged ones are passed over and named in the result.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            manifest = read_object(path / MANIFEST)
            for name in (TENSORS, STATE):
                if (path / name).stat().st_size != manifest[name]["size"] or file_hash(
                    path / name
                ) != manifest[name]["sha256"]:
                    raise ValueError(f"{name} is not what was written")
            state = read_object(path / STATE, nan=True)
            return Checkpoint(state["step"], load_file(path / TENSORS), state, damaged)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"{path.name}: {error}")
    return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_file(path: Path) -> None:
    """Makes sure that the disk has what was written.

    File systems that cannot flush a folder are left to themselves.
    """
    with contextlib.suppress(PermissionError if path.is_dir() else FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
