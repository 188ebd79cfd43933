"""Tensors of a checkpoint in a network: their type, their device, and their assignment."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headstart.errors import ConfigError, MissingExtraError


def as_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """A type by its name ("bfloat16", "torch.float16"); "auto" is None."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"dtype={dtype!r}; expected a floating-point type such as 'float32', 'bfloat16' or"
            " 'float16', or 'auto'"
        )
    return found


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Replaces a parameter or buffer by a tensor, with the same kind and `requires_grad`."""
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    old = owner._parameters.get(leaf)
    if old is not None:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=old.requires_grad)
    else:
        owner._buffers[leaf] = value


def weights_hash(model: nn.Module, leave_out: Sequence[str] = ()) -> Any:
    """A `hashlib` object that holds names and values of a network's tensors.

    Args:
        model: The network.
        leave_out: Modules whose tensors do not count.
    """
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not any(name.startswith(f"{module}.") for module in leave_out):
            whole.update(name.encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            whole.update(flat.view(torch.uint8).numpy().tobytes())
    return whole


PLANS = ("auto", "balanced", "balanced_low_0", "sequential")


def dispatched(model: nn.Module, device_map: Any) -> Any:
    """The network with its modules on the devices of `device_map`, by accelerate."""
    if isinstance(device_map, str) and device_map not in PLANS:
        return model.to(device_map)
    try:
        from accelerate import dispatch_model, infer_auto_device_map
    except ImportError:
        raise MissingExtraError("accelerate", "train") from None
    if isinstance(device_map, str):
        if not torch.cuda.is_available():  # a single device
            return model
        device_map = infer_auto_device_map(model)
    return dispatch_model(model, device_map)


class NoInit(TorchFunctionMode):
    """Skips the random initialization of modules, whose tensors come from a file."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_INITIALIZERS = {
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.uniform_,
    nn.init.normal_,
    Tensor.uniform_,
    Tensor.normal_,
}
