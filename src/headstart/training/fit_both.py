"""A run that fits a head, trains every weight from there, and keeps the better one."""

import dataclasses
import math
import shutil

from headstart.features.extract import extractor_of
from headstart.features.memory import FILE as MEMORY
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks import HeadTask
from headstart.tasks.result import Result
from headstart.training.estimate import measure
from headstart.training.fit_full import (
    find_unknown,
    make_loop,
    make_network,
    report_no_full,
    restore,
    run_loop,
)
from headstart.training.fit_head import (
    AUTO_SECONDS,
    Fitted,
    find_head,
    finish_head,
    write_head,
    write_memory,
)
from headstart.training.loop import DivergedError, Loop
from headstart.training.request import Run, describe
from headstart.training.result import begin, finish
from headstart.training.tuning import (
    HEAD,
    HEAD_PART,
    Start,
    choose_rate,
    cut_steps,
    examples_of,
    planned,
    rounds_of,
    within,
)

QUICK = 64  # examples among which a few are timed before every weight is trained


def fit_both_run(run: Run, resume: bool) -> Result:
    """Fits a head, trains every weight from there in the time that is left, and keeps the better
    one on held-out data.
    """
    task, given_up = run.task, list[str]()
    start = Start.read(run.out) if resume else None
    if start is None:
        full = run.recipe
        shutil.rmtree(run.out / HEAD, ignore_errors=True)  # of a run that was killed early
        run.recipe = full.head_only()
        fitted = find_head(run, [], 1.0 if run.deadline is None else HEAD_PART, full)
        head = run.recipe
        plan = plan_full(run, full, fitted)
        start = Start.read(run.out)
        if plan is None:
            run.recipe = head
            begin(run)
            if start is None:
                return finish_head(run, fitted)
            return keep_head(run, start, fitted.cost.seconds, [])
        run.recipe, given_up = plan
    assert start is not None
    loop = make_loop(run, resume, prepared=not resume)
    if resume:
        restore(run, loop)
    estimate = measure(loop)
    left = run.recipe.steps - loop.step
    run.progress.report(describe(run.recipe, "all weights, from the fitted head"))
    run.progress.report(estimate.text(run.recipe, left))
    if not resume:
        begin(run)
    try:
        network, result = run_loop(run, loop, estimate, given_up)
        value = result.evaluations[start.split].metrics[task.headline]
        note = start.compared(task.headline, value)
    except DivergedError as error:
        note, value = f"{error}; the fitted head is kept", -math.inf
    run.progress.report(note)
    task.notes.append(note)
    if value > start.value:
        result.trials = start.trials
        find_unknown(run, network, result, estimate)
        return finish(run, network, result)
    return keep_head(run, start, estimate.seconds(run.recipe), given_up)


def plan_full(run: Run, full: Recipe, fitted: Fitted) -> tuple[Recipe, list[str]] | None:
    """How every weight is trained from a fitted head, which is saved for it, and what was given up.

    Args:
        run: Its recipe is that of the head.
        full: The recipe of full training.
        fitted: The head.

    Returns:
        None where there is no time for it.
    """
    task, network = run.task, fitted.network
    assert isinstance(task, HeadTask)
    side, examples = task.side, task.splits["train"]
    recipe = planned(full, side, sum(p.numel() for p in network.parameters()), run.fixed)
    names = task.feature_digests()["train"][:QUICK]
    extractor = extractor_of(task, network, run.world.device)
    seconds = extractor.seconds(names, task.feature_sizes(names)) / len(names)
    seconds *= 3 * (1.0 if side is None or recipe.crop is None else (recipe.crop / side) ** 2)
    whole = seconds * examples_of(recipe)
    if run.deadline is None and whole > 2 * AUTO_SECONDS:
        report_no_full(run, whole)
        return None
    if 2 * run.left < seconds * examples and not run.fixed:
        run.progress.report("the budget has no time to train every weight: the fitted head is kept")
        return None
    split = run.held_out[0]
    found = fitted.found
    value = found.evaluations[split].metrics[task.headline]
    mirrored = found.choice.candidates[0].view.mirrored
    start = Start(split, value, mirrored, run.recipe.to_dict(), found.trials)
    start.write(run.out, network, task)
    write_memory(run, fitted, run.out / HEAD)
    run.recipe = recipe
    loop = make_loop(run, False)
    estimate = measure(loop)
    if run.deadline is None:
        whole = estimate.seconds(run.recipe)
        if whole > AUTO_SECONDS:
            report_no_full(run, whole)
            return None
        return run.recipe, []
    cut, given_up = within(run.recipe, estimate, run.left, side, run.fixed)
    if (cut.crop, cut.resize) != (run.recipe.crop, run.recipe.resize):
        run.recipe = cut
        loop = make_loop(run, False)
        estimate = measure(loop)
    training = dataclasses.replace(estimate, evaluated=0).seconds(cut)
    too_few = examples_of(cut) < examples or training > run.left
    if too_few and not run.fixed:
        run.progress.report("the budget has no time to train every weight: the fitted head is kept")
        return None
    steps = 0 if run.fixed else rounds_of(cut, examples)
    if steps:
        rate, losses = choose_rate(lambda each: trial_loop(run, each), cut, steps)
        tried = ", ".join(f"{each:g}: {loss:.3f}" for each, loss in losses.items())
        run.progress.report(f"learning rate {rate:g}, of (rate: loss of a short trial) {tried}")
        cut, _ = cut_steps(dataclasses.replace(cut, lr=rate), estimate, run.left)
    return cut, given_up


def trial_loop(run: Run, recipe: Recipe) -> Loop:
    """A loop from the start that writes nothing."""
    return Loop(
        run.task, make_network(run), recipe, run.out, run.world, Silent(), workers=run.workers
    )


def keep_head(run: Run, start: Start, expected: float, given_up: list[str]) -> Result:
    """Writes the result of the fitted head that full training started from."""
    task, device = run.task, run.world.device
    assert isinstance(task, HeadTask)
    run.recipe = Recipe.from_dict(start.recipe)
    recipe = dataclasses.replace(run.recipe, zero_head=False)
    network = task.build(str(run.out / HEAD), recipe).to(device).eval()
    task.problem.use_units()
    extractor = extractor_of(task, network, device)
    digests = task.feature_digests()
    with run.progress:
        every = [name for names in digests.values() for name in names]
        store = extractor.fill(every, run.progress)
    weight, bias = (each.detach().cpu().numpy() for each in extractor.layer.parameters())
    evaluations = {
        split: task.evaluate_scores(split, store[digests[split]] @ weight.T + bias)
        for split in run.held_out
    }
    if run.world.is_main:
        memory = run.out / HEAD / MEMORY
        if memory.is_file():
            shutil.copy2(memory, run.out / MEMORY)
    result = Result(run.out, run.recipe, evaluations, 0.0, expected, given_up)
    result.trials = start.trials
    return write_head(run, network, result)
