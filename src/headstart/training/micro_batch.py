"""The memory of a training step, and the micro-batch that fits into it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.recipe import Recipe
from headstart.tasks.base import Task
from headstart.training.optim import autocast
from headstart.training.world import World


def fitting_micro_batch(
    task: Task, model: nn.Module, recipe: Recipe, world: World, note: Callable[[str], None]
) -> int:
    """A micro-batch that fits into memory.

    Measured with one example, at most 32 on a CPU, where more gains nothing.
    """
    if world.sharded and recipe.batch_size % world.size:
        raise ConfigError(
            f"--fsdp needs a batch size that {world.size} processes share evenly, not"
            f" {recipe.batch_size}; give --batch-size"
        )
    if recipe.micro_batch is not None:
        return min(recipe.micro_batch, recipe.batch_size)
    per_example = memory_per_example(task, model, recipe, world.device)
    free = free_memory(world.device)
    limit = recipe.batch_size if world.device.type == "cuda" else 32
    wanted = min(limit, -(-recipe.batch_size // world.size))
    size = world.broadcast(int(max(1, min(wanted, 0.6 * free / per_example))))
    if size < wanted:
        note(
            f"micro-batches of {size}: {per_example / 2**20:.0f} MB an image, {free / 2**30:.1f} GB"
            " free"
        )
    return size


def memory_per_example(task: Task, model: nn.Module, recipe: Recipe, device: torch.device) -> float:
    """Bytes that the backward pass needs of one example.

    The tensors that the forward pass keeps for it.
    """
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        # Weights that are put together from pieces for a moment cannot be inferred from the rest;
        # but they are no more for two examples.
        return max(
            1.0,
            kept_bytes(task, model, recipe, device, 2) - kept_bytes(task, model, recipe, device, 1),
        )
    return max(1.0, kept_bytes(task, model, recipe, device, 1))


def kept_bytes(
    task: Task, model: nn.Module, recipe: Recipe, device: torch.device, count: int
) -> float:
    """Bytes that a forward pass of so many examples keeps for the backward pass, without the
    weights.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    # batch norm counts what it sees
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {
        p.untyped_storage().data_ptr() for p in model.parameters() if not hasattr(p, "full_tensor")
    }
    batch = task.collate([task.example(0, np.random.default_rng(0))] * count)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(recipe, device),
    ):
        task.loss(model, task.micro(batch, slice(0, count), device))
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return float(sum(size for address, size in kept.items() if address not in weights))


def free_memory(device: torch.device) -> float:
    """Bytes that may still be used on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(
            float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        return float(4 << 30)  # not Linux: a careful guess
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if (
        limit.is_file()
        and used.is_file()
        and (text := limit.read_text(encoding="ascii").strip()).isdigit()
    ):
        available = min(available, float(text) - float(used.read_text(encoding="ascii")))
    return max(available, 0.0)
