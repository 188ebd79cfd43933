"""`headstart.optimize`.

Tries the engines that are here on this machine, keeps the fastest whose outputs are right, and says
so.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart.engine.capture import (
    Signature,
    bare,
    check_dynamic,
    flatten,
    make_example,
    resized,
    signature_of,
)
from headstart.engine.deviation import AGREEMENT, Deviation, check_tolerance, compare, enough
from headstart.engine.engines import candidates, engine
from headstart.engine.engines.base import PRECISIONS, Job, Precision, Runner, Streams
from headstart.engine.engines.torch import on_threads
from headstart.engine.folds import check
from headstart.engine.model import OptimizedModel
from headstart.engine.report import Report, Trial
from headstart.errors import ConfigError, HeadstartError, InputError

logger = logging.getLogger("headstart")

Goal = Literal["latency", "throughput"]

# Largest difference of an output that is taken, as a fraction of the largest output.
TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.5}
SECONDS = 3.0  # how long each round of timing takes at most, for all engines together
# calls that deviations are measured on, at most
SAMPLES: dict[Precision, int] = {"float32": 32, "bfloat16": 256, "int8": 512}


def optimize(
    model: nn.Module,
    *,
    example: Any = None,
    engine: str | None = None,
    precision: Precision = "float32",
    dynamic: Sequence[str] | str | bool | None = None,
    threads: int | None = None,
    streams: int | None = None,
    goal: Goal = "latency",
    tolerance: float | None = None,
    calibration: Iterable[Any] | None = None,
) -> OptimizedModel:
    """A model of the same call and outputs that runs as fast as this machine allows.

    Engines are tried in turns on the example, their outputs are compared with the model's own, and
    the fastest of those that are close enough is taken. Where none is, a higher precision is taken
    instead and a warning says so.

    Args:
        model: A network of any family, with any head, in evaluation mode.
        example: Inputs as they will be: a mapping of tensors, or a tensor for the main input.
            Default: one image or text.
        engine: "torch", "openvino" or "onnxruntime"; None tries all that are installed.
        precision: "float32", "bfloat16" or "int8" (which needs `calibration`).
        dynamic: Axes that change from call to call: "batch", "size" (images), "length" (texts).
            Default: the batch, and the length of texts. Calls of other shapes run in PyTorch.
        threads: Threads of the engine; default PyTorch's.
        streams: Into how many the threads are divided, each with an image or a text of its own;
            OpenVINO has them. None tries one, and as many as threads where the batch or the callers
            are several.
        goal: "latency" takes the engine whose call ends first, "throughput" the one that serves as
            many callers as threads soonest.
        tolerance: Largest difference of an output, as a fraction of the largest output; default
            1e-4 in float32, 0.1 in bfloat16, 0.5 in int8, where 99 % of the answers must also stay
            the same.
        calibration: Inputs like `example` of real data: int8 measures its ranges on them, and
            deviations are measured on some of them.

    Returns:
        The optimized model; `report` says what was measured.

    Raises:
        ConfigError: Arguments that do not fit together.
        InputError: An example or calibration that the network does not take.

    Example:
        >>> fast = headstart.optimize(model, engine="openvino")  # doctest: +SKIP
        >>> fast(pixel_values).logits  # doctest: +SKIP
        >>> fast.save_pretrained("fast")  # doctest: +SKIP
    """
    check(model)
    inputs = make_example(model, example)
    device = next(iter(model.parameters())).device
    inputs = {name: each.to(device) for name, each in inputs.items()}
    names = candidates(engine, precision, device.type)
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ConfigError(f"threads={threads}; expected at least 1")
    if streams is not None and not 1 <= streams <= threads:
        raise ConfigError(f"streams={streams}; expected 1 to {threads}, the number of threads")
    if tolerance is not None and math.isnan(tolerance):
        check_tolerance(tolerance)
    if goal not in get_args(Goal):
        raise ConfigError(f"goal={goal!r}; expected {' or '.join(get_args(Goal))}")
    samples = [
        {name: x.to(device) for name, x in make_example(model, each).items()}
        for each in calibration or ()
    ]
    if precision == "int8" and not samples:
        raise ConfigError(
            "int8 measures ranges on real inputs; pass calibration=, such as a hundred images"
        )
    if any(set(each) != set(inputs) for each in samples):
        raise InputError(f"calibration has other inputs than the example ({', '.join(inputs)})")
    search = Search(
        model, inputs, samples, check_dynamic(dynamic, inputs), threads, precision, streams, goal
    )
    report, runner = search.best(names, engine, precision, tolerance)
    return OptimizedModel(model, runner, search.signature, report)


class Search:
    """Builds, checks and times engines for one network."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        samples: list[dict[str, Tensor]],
        dynamic: tuple[str, ...],
        threads: int,
        precision: Precision,
        streams: int | None = None,
        goal: Goal = "latency",
    ) -> None:
        self.model, self.inputs, self.samples, self.dynamic, self.threads = (
            model,
            inputs,
            samples,
            dynamic,
            threads,
        )
        self.streams, self.goal = streams, goal
        self.signature: Signature = signature_of(model, inputs, dynamic)
        self.device = next(iter(inputs.values())).device
        for each in samples:
            if self.signature.prepare(each, self.device) is None:
                shapes = {name: tuple(tensor.shape) for name, tensor in each.items()}
                raise InputError(
                    f"calibration has inputs of {shapes}; the example and dynamic= allow"
                    f" {self.signature.shapes}"
                )
        chosen = samples[:: max(1, len(samples) // SAMPLES[precision])][: SAMPLES[precision]]
        self.checks = [dict(inputs), resized(inputs, dynamic), *chosen]
        self.real = len(chosen)  # how many of the checks, the last ones, are the user's own
        with torch.inference_mode():
            self.wanted = [flatten(model(**each, **bare(model))) for each in self.checks]

    def best(
        self, names: list[str], requested: str | None, precision: Precision, tolerance: float | None
    ) -> tuple[Report, Runner]:
        """The fastest engine in a precision, or in a higher one where none is close enough."""
        trials: list[Trial] = []
        for level in PRECISIONS[PRECISIONS.index(precision) :: -1]:
            usable = names if level == precision else self.engines(level, requested)
            ready = self.attempt(
                usable, level, TOLERANCES[level] if tolerance is None else tolerance, trials
            )
            if ready:
                report, runner = self.race(ready, trials, precision)
                return report, runner
            logger.warning(
                "no engine is close enough in %s: %s",
                level,
                "; ".join(t.describe() for t in trials if t.precision == level),
            )
        raise ConfigError(
            "no engine gives the outputs of the network, not even in float32: "
            + "; ".join(t.describe() for t in trials)
        )

    def engines(self, precision: Precision, requested: str | None) -> list[str]:
        """The requested engine where it has a precision, else all that have."""
        found = candidates(None, precision, self.device.type)
        return [name for name in found if requested in (None, name)] or found

    def attempt(
        self, names: list[str], precision: Precision, tolerance: float, trials: list[Trial]
    ) -> list[tuple[Trial, Runner]]:
        """Builds engines and keeps those that are close enough; every trial is noted."""
        ready = []
        for name in names:
            trial = Trial(name, precision)
            trials.append(trial)
            try:
                before, start = memory(), time.perf_counter()
                job = Job(
                    self.model,
                    self.signature,
                    self.inputs,
                    self.dynamic,
                    precision,
                    self.threads,
                    self.samples,
                )
                runner = engine(name).build(job)
                trial.int8_fraction = getattr(runner, "int8_fraction", None)
                trial.deviation = self.deviation(runner)
                trial.build_seconds, trial.memory_mb = (
                    time.perf_counter() - start,
                    memory() - before,
                )
            except (HeadstartError, RuntimeError) as error:  # another engine may run this network
                trial.refused = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            trial.refused = refusal(trial.deviation, precision, tolerance)
            if trial.refused is None:
                ready.append((trial, runner))
        return ready

    def deviation(self, runner: Runner) -> Deviation:
        """How far an engine is from the network, on every check.

        Answers are counted on real inputs alone where there are any: an example may be noise, which
        says little about any class.
        """
        found = []
        for each in self.checks:
            tensors = self.signature.prepare(each, self.device)
            if tensors is None:
                raise InputError(
                    f"a sample has shapes {[tuple(t.shape) for t in each.values()]}, expected"
                    f" {self.signature.shapes}"
                )
            found.append(dict(zip(self.signature.outputs, runner(tensors), strict=True)))
        every = compare(self.wanted, found)
        if not self.samples:
            return every
        real = compare(self.wanted[-self.real :], found[-self.real :])
        return replace(
            every, agreement=real.agreement, answers=real.answers, expected=real.expected
        )

    def race(
        self, ready: list[tuple[Trial, Runner]], trials: list[Trial], precision: Precision
    ) -> tuple[Report, Runner]:
        """Times engines in turns with the network itself, and takes the fastest."""
        tensors = self.signature.prepare(self.inputs, self.device)
        assert tensors is not None

        def original() -> Any:
            with torch.inference_mode():
                return self.model(**self.inputs)

        streamed = self.with_streams(ready, tensors)
        if self.streams is not None and self.streams > 1:
            if not streamed:
                raise ConfigError(
                    f"streams={self.streams}, and no engine that could be taken has streams;"
                    " openvino has"
                )
            ready = []
        ready = ready + streamed

        def original_on_one() -> Any:
            with on_threads(1):
                return original()

        # On a busy machine one thread can be many times as fast as two.
        contenders: dict[Any, Callable[[], Any]] = {"original": original}
        if self.threads > 1:
            contenders["original on one"] = original_on_one
        contenders |= {i: partial(runner, tensors) for i, (_, runner) in enumerate(ready)}
        callers = self.threads if self.goal == "throughput" else 1
        with on_threads(self.threads), ThreadPoolExecutor(callers) as pool:
            if callers > 1:
                contenders = {
                    name: partial(at_once, run, callers, pool) for name, run in contenders.items()
                }
            times = {name: ms / callers for name, ms in in_turns(contenders, SECONDS).items()}
        for i, (trial, _) in enumerate(ready):
            trial.ms = times[i]
            if trial not in trials:
                trials.append(trial)
        before = min(times["original"], times.get("original on one", float("inf")))
        chosen, runner = min(ready, key=lambda each: each[0].ms or 0.0)
        if chosen.ms is not None and chosen.ms > before:
            logger.warning(
                "nothing in %s is faster here than the network in PyTorch; see the report",
                chosen.precision,
            )
        batch = int(tensors[0].shape[0])
        return (
            Report(
                type(self.model).__name__,
                chosen,
                before,
                batch,
                self.threads,
                precision,
                trials,
                callers,
                self.threads if before == times["original"] else 1,
            ),
            runner,
        )

    def with_streams(
        self, ready: list[tuple[Trial, Runner]], tensors: list[Tensor]
    ) -> list[tuple[Trial, Runner]]:
        """The engines that can divide their threads into streams, doing so where there is work for
        several.
        """
        splits = len(tensors[0]) > 1 and self.signature.shapes[0][0] is None
        several = splits or self.goal == "throughput"
        streams = self.streams or (self.threads if several else 1)
        if streams == 1:
            return []
        found = [
            (replace(trial, streams=streams), runner.with_streams(streams))
            for trial, runner in ready
            if isinstance(runner, Streams)
        ]
        for _, runner in found:
            runner(tensors)  # compiles
        return found


def refusal(deviation: Deviation, precision: Precision, tolerance: float) -> str | None:
    """Why a deviation is too much, or None."""
    if not deviation.largest <= tolerance:
        return f"outputs differ by {deviation.largest:.1e}, above the tolerance of {tolerance:.1e}"
    if precision != "float32" and not enough(deviation, AGREEMENT):
        return (
            f"only {deviation.agreement:.1%} of the answers stay the same, {deviation.expected:.1%}"
            " with errors of either sign"
        )
    return None


def at_once(run: Callable[[], Any], callers: int, pool: ThreadPoolExecutor) -> None:
    """As many calls as callers, each from a thread of its own."""
    for call in [pool.submit(run) for _ in range(callers)]:
        call.result()


def in_turns(
    contenders: Mapping[Any, Callable[[], Any]], seconds: float, least: int = 3
) -> dict[Any, float]:
    """Median milliseconds of each, measured in turns for about some seconds.

    In a single turn where that takes longer already.
    """

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        wait()
        return 1e3 * (time.perf_counter() - start)

    # a warm-up where calls are short
    first = {name: timed(run) for name, run in contenders.items()}
    if sum(first.values()) > 4e3 * seconds:
        return first
    times: dict[Any, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, run in contenders.items():
            times[name].append(timed(run))
        if len(times[name]) >= 200:
            break
    return {name: median(each) for name, each in times.items()}


def wait() -> None:
    """Until accelerators have done what they were given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def memory() -> float:
    """Megabytes that this process holds now, with what it has on accelerators."""
    held = (
        sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**20
        if torch.cuda.is_available()
        else 0.0
    )
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the largest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + held
    return pages * resource.getpagesize() / 2**20 + held
