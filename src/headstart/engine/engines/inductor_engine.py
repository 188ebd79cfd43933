"""PyTorch's compiler as an engine.

The folded network as machine code in a file, made once and loaded without compiling.
"""

import copy
import platform
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.engine.capture import Signature
from headstart.engine.engines import Job
from headstart.engine.engines.torch_engine import load as load_folded
from headstart.engine.engines.torch_engine import on_threads
from headstart.engine.exporting import export_program, quiet
from headstart.engine.folds import fold
from headstart.errors import ConfigError, FileFormatError

PACKAGE = "inductor.pt2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class InductorRunner:
    """A compiled package."""

    def __init__(self, package: Path, precision: str, device: torch.device, threads: int) -> None:
        self.package, self.device, self.threads = package, device, threads
        self.dtype = DTYPES[precision]
        with quiet():
            self.program = torch._inductor.aoti_load_package(str(package))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs in float32."""
        with torch.inference_mode(), on_threads(self.threads):
            cast = [x.to(self.dtype).contiguous() if x.is_floating_point() else x for x in inputs]
            return [out.float() if out.is_floating_point() else out for out in self.program(*cast)]

    def save(self, folder: Path) -> dict[str, Any]:
        """The package, which fits no other PyTorch and no other processor."""
        if self.package.resolve() != (folder / PACKAGE).resolve():
            shutil.copyfile(self.package, folder / PACKAGE)
        return {"made_for": here()}


def here() -> dict[str, str]:
    """This PyTorch and this processor."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def build(job: Job) -> InductorRunner:
    """Exports and compiles; takes about a minute, and needs a C++ compiler.

    Raises:
        ConfigError: The compiler could not do it.
    """
    network = fold(job.model, size=job.signature.size, lean=True)
    dtype = DTYPES[job.precision]
    example = {name: x.to(dtype) if x.is_floating_point() else x for name, x in job.example.items()}
    if dtype is not torch.float32:
        # the weights that it shares with the original stay as they are
        network = copy.deepcopy(network).to(dtype)
    scratch = tempfile.mkdtemp()
    with quiet(), torch.no_grad():
        program = export_program(network, job.signature, example, job.dynamic)
        try:
            path = torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(Path(scratch) / PACKAGE),
                inductor_configs={"freezing": True},
            )
        except torch._inductor.exc.InductorError as error:
            raise ConfigError(
                f"PyTorch's compiler failed: {str(error).strip().splitlines()[0]}"
            ) from error
    runner = InductorRunner(
        Path(str(path)), job.precision, next(iter(job.example.values())).device, job.threads
    )
    weakref.finalize(runner, shutil.rmtree, scratch, True)
    return runner


def load(
    folder: Path, signature: Signature, facts: Mapping[str, Any], threads: int, model: Any
) -> Any:
    """A saved package; on another machine or PyTorch, the folded network without compiling."""
    if facts.get("made_for") != here():
        return load_folded(folder, signature, facts, threads, model)
    if not (folder / PACKAGE).is_file():
        raise FileFormatError(f"{folder} has no {PACKAGE}; optimise the model again")
    return InductorRunner(
        folder / PACKAGE,
        str(facts["precision"]),
        torch.device(str(facts.get("device", "cpu"))),
        threads,
    )
