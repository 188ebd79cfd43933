"""Optimizers of a recipe: which parameters are trained, at which rate, decay and precision."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError
from headstart.recipe import Recipe
from headstart.training.world import placed


def freeze(model: nn.Module, frozen: Iterable[str], trained: Iterable[str] = ()) -> None:
    """Stops the training of parameters whose names begin so.

    Args:
        model: Its parameters are marked as trained or not, in place.
        frozen: Beginnings of the names of those that stay as they are.
        trained: Beginnings of names that are trained nevertheless. Without `frozen`, everything
            else but the head stays as it is.

    Raises:
        ConfigError: A beginning that no parameter has, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen, trained = tuple(frozen), tuple(trained)
    for option, prefix in [
        *(("freeze", each) for each in frozen),
        *(("unfreeze", each) for each in trained),
    ]:
        if not any(name.startswith(prefix) for name in names):
            known = ", ".join(dict.fromkeys(".".join(name.split(".")[:4]) for name in names))
            raise ConfigError(
                f"{option}: no parameter begins with {prefix!r}; beginnings are {known}"
            )
    if trained and not frozen:
        frozen, trained = ("",), (*trained, *getattr(model, "heads", ()))
    for name, parameter in model.named_parameters():
        if name.startswith(frozen) and not name.startswith(trained):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze leaves nothing to train")


def depths(model: nn.Module) -> dict[str, int]:
    """How far from the input each parameter is: 0 for the stem, one more for each block, the most
    for the head and the last norm.

    Blocks are the items of the innermost `nn.ModuleList`s, in the order in which the model defines
    them, which is the order of the data.
    """
    lists = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    heads: tuple[str, ...] = getattr(model, "heads", ())
    blocks: dict[str, int] = {}
    found: dict[str, int] = {}
    after: list[str] = []
    for name, _ in model.named_parameters():
        parts = name.split(".")
        owners = [
            ".".join(parts[: i + 1]) for i in range(1, len(parts)) if ".".join(parts[:i]) in lists
        ]
        if any(name.startswith(head + ".") for head in heads) or (not owners and blocks):
            after.append(name)
        elif owners:
            found[name] = blocks.setdefault(owners[-1], len(blocks) + 1)
        else:
            found[name] = 0
    return found | dict.fromkeys(after, len(blocks) + 1)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe. Each group has a `scale` that the rate of the step is multiplied
    by.

    Vectors (biases, norms, layer scales) are not decayed: decay is meant for matrices and kernels.
    """
    depth = depths(model)
    top = max(depth.values())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = recipe.layer_decay ** (top - depth[name])
            groups.setdefault(
                (scale, recipe.weight_decay if parameter.ndim > 1 else 0.0), []
            ).append(parameter)
    described = [
        {"params": params, "scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(described, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(described, lr=recipe.lr, betas=recipe.betas)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name and kind, for example
    "classifier.weight/momentum_buffer".
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{kind}"] = value
    return tensors


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Inverse of `optimizer_tensors`."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        by_name.setdefault(name, {})[kind] = value
    for name, parameter in model.named_parameters():
        if name in by_name:  # AdamW keeps its count of steps on the CPU
            state = {
                kind: value if kind == "step" else placed(value, parameter)
                for kind, value in by_name[name].items()
            }
            optimizer.state[parameter] = state


class Average:
    """Exponential moving average of the trained weights, which begins as a plain average so that
    the first weights are forgotten.

    torch's `AveragedModel` would copy the frozen weights as well, and its decay is constant.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after update number `step` = 0, 1, 2, …"""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.tensors:
                self.tensors[name].lerp_(parameter, weight)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's weights and their average; a second call puts them back."""
        for name, parameter in model.named_parameters():
            if name in self.tensors:
                trained = parameter.detach().clone()
                parameter.copy_(self.tensors[name])
                self.tensors[name] = trained


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Inside the block the network computes in the recipe's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(recipe.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
