"""One process or many: who this process is, and what it must agree on with the others.

Many processes are started by `torchrun` or `accelerate launch`; `accelerate` does the work and is
imported only then.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import DistError

from headstart.errors import ConfigError, HeadstartError, MissingExtraError, ProcessLostError

T = TypeVar("T")


class World:
    """The processes of a run; a single one by default.

    Args:
        device: "cpu", "cuda", …; None takes an accelerator where there is one.
        sharded: Whether each process holds a piece of weights, gradients and optimizer (FSDP) and
            not all of it.
    """

    def __init__(self, device: str | torch.device | None = None, sharded: bool = False) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._accelerator: Any = None
        if self.size > 1:
            try:
                from accelerate import Accelerator
            except ImportError:
                raise MissingExtraError("accelerate", "train") from None
            self._accelerator = Accelerator(
                cpu=str(device) == "cpu" or not torch.cuda.is_available()
            )
        self.rank: int = self._accelerator.process_index if self._accelerator else 0
        self.device: torch.device = (
            self._accelerator.device if self._accelerator else best_device(device)
        )
        self.sharded = sharded
        if sharded and self.size == 1:
            raise ConfigError(
                "--fsdp shares a model between processes; start them with: torchrun"
                " --nproc-per-node 2 -m headstart train …"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This process's rows of a batch."""
        bounds = [total * rank // self.size for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self._accelerator is None or self.sharded:  # then the model itself exchanges gradients
            return model
        wrapped: nn.Module = self._accelerator.prepare(model)
        return wrapped

    def shard(self, model: nn.Module) -> None:
        """Leaves this process its piece of every parameter, where the processes share the model.

        The optimizer is made after that.
        """
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for part in [*blocks(model), model]:
            # the whole model's too: averages are swapped in between passes
            fully_shard(part, mesh=mesh, reshard_after_forward=True)

    @contextmanager
    def lost_processes(self) -> Iterator[None]:
        """Inside the block, the end of another process is an error with a message of its own."""
        try:
            yield
        except HeadstartError:  # an interruption among them
            raise
        except RuntimeError as error:
            lost = isinstance(error, DistError) or any(
                word in str(error).lower() for word in ("gloo", "nccl", "connection")
            )
            if self.size == 1 or not lost:
                raise
            raise ProcessLostError(
                "another process of this run has ended; go on from the last checkpoint with"
                " --resume"
            ) from error

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self._accelerator is None:
            return value
        held = [value]
        torch.distributed.broadcast_object_list(held, device=self.device)
        return held[0]

    def hold_gradients(self, model: nn.Module) -> AbstractContextManager[Any]:
        """While it is open, gradients add up in each process and are not exchanged."""
        if self.sharded:
            return _unsynchronized(model)
        held: AbstractContextManager[Any] = (
            self._accelerator.no_sync(model) if self._accelerator else nullcontext()
        )
        return held

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self._accelerator is None:
            return values
        summed: Tensor = self._accelerator.reduce(values, reduction="sum")
        return summed

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return (
            flag
            if self._accelerator is None
            else bool(self.total(torch.tensor(float(flag), device=self.device)).item())
        )

    def barrier(self) -> None:
        """Returns once every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


@contextmanager
def _unsynchronized(model: Any) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The items of the innermost `nn.ModuleList`s.

    The parts of a network that run one after the other.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [
        item
        for each in lists
        for item in each
        if not any(isinstance(inner, nn.ModuleList) for inner in item.modules())
    ]


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their pieces put together.

    Every process has to call this where they are in pieces.
    """
    return {
        name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()
        for name, tensor in tensors.items()
    }


def placed(value: Tensor, like: Any) -> Tensor:
    """A whole tensor where another one is: on its device, in its pieces."""
    if hasattr(like, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads a whole state into a model that may be in pieces."""
    own = model.state_dict()
    model.load_state_dict(
        {
            name: placed(tensor, own[name]) if name in own else tensor
            for name, tensor in tensors.items()
        }
    )


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
        raise ConfigError(
            f"device={str(name)!r}: no CUDA device is available here; leave the option out to use"
            " the CPU"
        )
    return device
