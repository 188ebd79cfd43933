"""One process or many: who this process is, and what it must agree on with the others.

Many processes are started by `torchrun` or `accelerate launch`; `accelerate` does the work and is imported only then.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import ConfigError, MissingExtraError


class World:
    """The processes of a run; a single one by default.

    Args:
        device: "cpu", "cuda", …; None takes an accelerator where there is one.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator: Any = None
        if self.size > 1:
            try:
                from accelerate import Accelerator
            except ImportError:
                raise MissingExtraError("accelerate", "train") from None
            self._accelerator = Accelerator(cpu=str(device) == "cpu" or not torch.cuda.is_available())
        self.rank: int = self._accelerator.process_index if self._accelerator else 0
        self.device: torch.device = self._accelerator.device if self._accelerator else best_device(device)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This process's rows of a batch."""
        bounds = [total * rank // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self._accelerator is None:
            return model
        wrapped: nn.Module = self._accelerator.prepare(model)
        return wrapped

    def hold_gradients(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While it is open, gradients add up in each process and are not exchanged."""
        held: AbstractContextManager[Any] = self._accelerator.no_sync(model) if self._accelerator else nullcontext()
        return held

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self._accelerator is None:
            return values
        summed: Tensor = self._accelerator.reduce(values, reduction="sum")
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag if self._accelerator is None else bool(self.total(torch.tensor(float(flag), device=self.device)).item())

    def wait(self) -> None:
        """Returns once every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def best_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name, or the best one of this machine."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={str(name)!r}: no CUDA device is available here; leave the option out to use the CPU")
    return device
