"""A run that trains every weight."""

import dataclasses
from typing import Any

import torch
from torch import nn

from headstart.errors import DataError
from headstart.features.extract import extractor_of
from headstart.features.unknown import trained_reference_of
from headstart.progress import duration
from headstart.tasks import HeadTask, can_fit_head
from headstart.tasks.result import Result
from headstart.training.checkpoints import load_checkpoint
from headstart.training.estimate import LONG, SMALL, Estimate, fit_budget, measure, unknown_seconds
from headstart.training.fit_head import AUTO_SECONDS, fit_head_run
from headstart.training.loop import Loop
from headstart.training.micro_batch import fitting_micro_batch
from headstart.training.request import Run
from headstart.training.result import begin, finish, resume_command
from headstart.training.tuning import Start, begin_with
from headstart.training.world import whole


def fit_full_run(run: Run, resume: bool) -> Result:
    """Trains every weight."""
    task, world = run.task, run.world
    loop = make_loop(run, resume)
    if resume:
        restore(run, loop)
    estimate = measure(loop)
    given_up: list[str] = []
    full_seconds = estimate.seconds(run.recipe)
    if run.automatic and not resume and run.deadline is None and full_seconds > AUTO_SECONDS:
        report_no_full(run, full_seconds)
        run.recipe = run.recipe.head_only()
        return fit_head_run(run)
    if run.deadline is not None and not resume:
        small = run.automatic and sum(p.numel() for p in loop.model.parameters()) < SMALL
        fitted = fit_budget(run.recipe, estimate, run.left, can_fit_head(task), small)
        run.recipe, given_up = world.broadcast(fitted)
        if given_up:
            run.progress.report(f"to keep the budget: {', '.join(given_up)}")
            if run.recipe.tune == "head":
                return fit_head_run(run, given_up)
            loop = make_loop(run, resume)
            estimate = measure(loop)
    left = run.recipe.steps - loop.step
    expected = estimate.seconds(run.recipe, left)
    run.progress.report(estimate.text(run.recipe, left))
    if expected > LONG and world.device.type == "cpu" and run.deadline is None:
        run.progress.report(
            "that is long: --tune head computes features once and is much quicker; --budget 30m"
            " reduces the recipe"
        )
    if not resume:
        begin(run)
    network, result = run_loop(run, loop, estimate, given_up)
    find_unknown(run, network, result, estimate)
    return finish(run, network, result)


def find_unknown(run: Run, network: nn.Module, result: Result, estimate: Estimate) -> None:
    """Adds what tells the classes of an image classifier from others, where there is time for the
    features of some thousand examples.
    """
    task = run.task
    seconds = unknown_seconds(task, estimate.forward, run.world.size)
    if isinstance(task, HeadTask) and 0 < seconds < run.left:
        extractor = extractor_of(task, network.eval(), run.world.device)
        with run.progress:
            result.reference = trained_reference_of(task, extractor, run.recipe.seed, run.progress)


def make_loop(run: Run, resume: bool, prepared: bool = False) -> Loop:
    """Model, data and loop as the recipe says; a new run finds its micro-batch."""
    world, task = run.world, run.task
    network = make_network(run)
    if not prepared:
        task.prepare(run.out / "cache" / str(world.rank))
    if not resume:
        size = fitting_micro_batch(
            task, network.to(world.device), run.recipe, world, run.progress.report
        )
        run.recipe = dataclasses.replace(run.recipe, micro_batch=size)
    identity = {"recipe": run.recipe.to_dict(), "fingerprint": task.fingerprint}
    return Loop(
        task,
        network,
        run.recipe,
        run.out,
        world,
        run.progress,
        workers=run.workers,
        identity=identity,
        resume_with=resume_command(run),
        board=run.tensorboard,
    )


def make_network(run: Run) -> nn.Module:
    """The network as it is trained; a new head and LoRA's matrices are alike in every process."""
    torch.manual_seed(run.recipe.seed)
    if isinstance(run.task, HeadTask) and Start.read(run.out) is not None:
        return begin_with(run.task, run.out, run.recipe)
    network = run.task.build(run.request.model, run.recipe, revision=run.request.revision)
    if run.recipe.lora_rank is not None:
        from headstart.training.lora import add_lora

        add_lora(network, run.recipe)
    return network


def restore(run: Run, loop: Loop) -> None:
    """Goes back to the newest checkpoint.

    Raises:
        DataError: The data has changed since.
    """
    checkpoint = load_checkpoint(run.out / "checkpoints")
    if checkpoint is None:
        run.progress.report("no checkpoint was written yet: starting from the beginning")
        loop.log.cut(0)
        return
    for damaged in checkpoint.damaged:
        run.progress.report(f"passed over a damaged checkpoint: {damaged}")
    if checkpoint.state.get("fingerprint") != run.task.fingerprint:
        raise DataError(
            "the data is not what the run was started with: images, labels or splits changed; start"
            " anew with another --out"
        )
    loop.restore(checkpoint)
    run.progress.report(f"going on after step {loop.step} of {loop.recipe.steps}")


def report_no_full(run: Run, seconds: float) -> None:
    """Says why every weight is not trained where no budget asks for it."""
    run.progress.report(
        f"training every weight would take about {duration(seconds)} here: the head alone"
        " is fitted (--tune full trains every weight)"
    )


def run_loop(
    run: Run, loop: Loop, estimate: Estimate, given_up: list[str]
) -> tuple[nn.Module, Result]:
    """Runs the loop to its end or to the deadline.

    Returns:
        The network as it is saved, and the result, which is not written yet.
    """
    task, world = run.task, run.world
    expected = estimate.total(run.recipe, run.recipe.steps - loop.step)
    # At the deadline the last weights are evaluated once more against the best so far.
    examples = sum(task.splits[split] for split in run.held_out)
    evaluation = (examples + task.splits.get("validation", 0)) * estimate.forward
    with run.progress:
        loop.run(None if run.deadline is None else run.deadline - evaluation)
    if loop.step < run.recipe.steps:
        given_up.append(f"stopped after step {loop.step} of {run.recipe.steps}")
    if loop.average is not None:
        loop.average.swap(loop.model)
    network, evaluations = merged(run, loop), {}
    start = Start.read(run.out)
    if start is not None and start.mirrored:
        config: Any = network.config
        config.average_mirrored = True
    if world.is_main:
        for split in run.held_out:
            evaluations[split] = task.evaluate(network, split, world.device)
    if world.is_main and "validation" in evaluations:
        loop.log.write({"step": loop.step, "validation": evaluations["validation"].metrics})
        loop.log.close()
    return network, Result(run.out, run.recipe, evaluations, 0.0, expected, given_up)


def merged(run: Run, loop: Loop) -> nn.Module:
    """The trained network as it is saved: in one piece, LoRA's matrices added to their weights."""
    network = loop.model
    if run.world.sharded:
        state = whole(loop.model.state_dict())
        network = make_network(run)
        network.load_state_dict(state)
    network.to(run.world.device).eval()
    if run.recipe.lora_rank is not None:
        from headstart.training.lora import merge_lora

        merge_lora(network)
    return network
