"""Which head a task gets on a frozen network: the search through a portfolio, and its result.

Letters: N examples, D features, V outputs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headstart.data.features import FeatureStore
from headstart.features.extract import MEASURED, Batches, Extractor, extractor_of
from headstart.features.head import Fit, install
from headstart.features.portfolio import (
    PERFECT,
    Candidate,
    Comparison,
    Trial,
    View,
    fit_trial,
    heads_of,
)
from headstart.progress import Progress, Silent
from headstart.tasks.base import Evaluation, HeadTask

Floats = NDArray[np.float32]
# standard errors by which a head has to be behind at the usual size to be left out at another one
HOPELESS = 3.0
MANY_STATES = 6  # hidden states up to which the head may read all


def states_of(model: nn.Module) -> list[int]:
    """Indices of the hidden states that a head may read beside the usual vector."""
    config: Any = model.config
    count = len(config.hidden_widths)
    if count <= MANY_STATES:
        return list(range(count))
    return [count // 2, 3 * count // 4, count - 1]


def read_states(model: nn.Module, layer: nn.Linear, states: Sequence[int]) -> nn.Linear:
    """Makes a classifier read these hidden states too, by a new last layer.

    Args:
        model: Its configuration changes with it.
        layer: Its last layer.
        states: Indices of hidden states.

    Returns:
        The new layer, whose first inputs are those of the states.
    """
    config: Any = model.config
    usual = layer.in_features - config.pooled_width
    config.pooled_hidden_states = list(states)
    new = nn.Linear(usual + config.pooled_width, layer.out_features).to(layer.weight)
    name = next(name for name, module in model.named_modules() if module is layer)
    model.set_submodule(name, new)
    return new


@dataclass
class Views:
    """Features of a task's examples, computed in different ways.

    Args:
        task: Its images or texts.
        extractor: Of the network, whose last layer reads all stages where it can.
        usual: Width of the last stage's vector.
        progress: Shows what is computed.
        stores: Cached features by side, of the images or of their mirror images.
    """

    task: HeadTask
    extractor: Extractor
    usual: int
    progress: Progress = field(default_factory=Silent)
    stores: dict[tuple[int | None, bool], FeatureStore] = field(default_factory=dict)
    paces: dict[int | None, float] = field(default_factory=dict)  # seconds a unit of size, by side

    @property
    def wide(self) -> bool:
        """Whether the features hold more than the last stage's vector."""
        return self.extractor.layer.in_features > self.usual

    def extractor_of(self, side: int | None, flipped: bool) -> Extractor:
        """What computes the features of images of a side, or of their mirror images."""
        self.task.set_side(side)
        values = self.task.preprocessing()
        if not flipped:
            return replace(self.extractor, preprocessing=values)
        values = {**values, "flipped": True}
        return replace(self.extractor, preprocessing=values, batches=self.flipped)

    def flipped(self, digests: Sequence[str]) -> Batches:
        """Mirror images in batches, with their digests."""
        for part, inputs in self.extractor.batches(digests):
            yield part, {name: value.flip(3) for name, value in inputs.items()}

    def missing(self, side: int | None, flipped: bool, digests: Sequence[str]) -> list[str]:
        """Examples whose features are not cached."""
        if (side, flipped) not in self.stores:
            self.stores[side, flipped] = self.extractor_of(side, flipped).store()
        store = self.stores[side, flipped]
        return [digest for digest in dict.fromkeys(digests) if digest and digest not in store]

    def compute(self, side: int | None) -> None:
        """Computes the features of all examples at a side, and drops those that cannot be read.

        Raises:
            DataError: Examples cannot be read.
        """
        if (side, False) not in self.stores:
            every = [digest for split in self.task.feature_digests().values() for digest in split]
            self.fill(side, False, every)
            self.task.drop_unread()

    def fill(self, side: int | None, flipped: bool, digests: Sequence[str]) -> None:
        """Computes the features that are not cached, and remembers how long that takes."""
        missing = self.missing(side, flipped, digests)
        extractor, began = self.extractor_of(side, flipped), time.perf_counter()
        self.stores[side, flipped] = extractor.fill(digests, self.progress)
        if len(missing) >= MEASURED:
            seconds = time.perf_counter() - began
            self.paces[side] = seconds / sum(self.task.feature_sizes(missing))

    def features(self, view: View, digests: Sequence[str]) -> Floats:
        """Features (N, D) of these examples, of all stages."""
        rows = []
        for flipped in (False, True)[: 1 + view.mirrored]:
            if missing := self.missing(view.side, flipped, digests):
                self.fill(view.side, flipped, missing)
            rows.append(self.stores[view.side, flipped][digests])
        self.task.set_side(view.side)
        if view.mirrored:
            rows[0] += rows[1]
            rows[0] /= 2
        return rows[0]

    def seconds(self, view: View, digests: Sequence[str]) -> float:
        """About how long the features of these examples will take.

        Time grows with the number of pixels; it is measured where nothing was computed yet.
        """
        total = 0.0
        for flipped in (False, True)[: 1 + view.mirrored]:
            missing = self.missing(view.side, flipped, digests)
            sizes = self.task.feature_sizes(missing)
            if not missing:
                continue
            if not self.paces:
                seconds = self.extractor_of(view.side, flipped).seconds(missing, sizes)
                self.paces[view.side] = seconds / sum(sizes)
            side = view.side if view.side in self.paces else max(self.paces, key=lambda s: s or 0)
            growth = (view.side / side) ** 2 if view.side and side else 1.0
            total += self.paces[side] * growth * sum(sizes)
        return total

    def of(self, candidate: Candidate, features: Floats) -> Floats:
        """The part of the features that a candidate reads."""
        return features[:, -self.usual :] if candidate.stages == "last" else features


def search(
    views: Views,
    comparison: Comparison,
    digests: Sequence[str],
    sides: Sequence[int],
    afford: Callable[[View], bool],
    tried: Callable[[int], None] = lambda count: None,
) -> tuple[Trial, list[str]]:
    """The head with the least held-out loss, as far as the evidence goes.

    First the kinds of head at the usual size, then larger images as long as they gain, then mirror
    images, then the average of the best.

    Args:
        views: Gives the features.
        comparison: Compares the candidates.
        digests: Of the compared examples.
        sides: Sides of the images to try, the usual one first; none for texts.
        afford: Whether there is time for a view.
        tried: Receives how many more heads are compared, of at most `most_trials`.

    Returns:
        The choice, and what was left out.
    """
    kinds, notes = comparison.heads, list[str]()
    usual = View(sides[0] if sides else None)

    def attempt(candidate: Candidate, near: float | None = None, settled: bool = False) -> Trial:
        features = views.of(candidate, views.features(candidate.view, digests))
        fits = comparison.fits(candidate.head, settled)
        with views.progress.counting(candidate.name, fits, "fits") as seen:
            found = comparison.try_candidate(candidate, features, near, settled=settled, seen=seen)
        tried(1)
        return found

    part = comparison.part()

    def attempt_view(view: View, choice: Trial) -> Trial | None:
        """The chosen head on another view; None where there is no time for it, or no promise."""
        if not afford(view):
            notes.append(f"not tried for lack of time: {view.name}")
            return None
        candidate = replace(choice.candidates[0], view=view)
        if part is not None and (hopeless := no_promise(views, part, digests, choice, candidate)):
            notes.append(hopeless)
            return None
        return attempt(candidate, choice.settings[0], settled=True)

    plain = choice = attempt(Candidate(usual, "last", kinds[0]))
    if plain.loss < PERFECT:
        return plain, ["nothing is left to gain: no other head was tried"]
    stages = ("last", "all") if views.wide else ("last",)
    others = [Candidate(usual, stage, kind) for stage in stages for kind in kinds]
    near = {kinds[0]: plain.settings[0]}
    for candidate in others[1:]:
        trial = attempt(candidate, near.get(candidate.head))
        near.setdefault(candidate.head, trial.settings[0])
    better = [trial for trial in comparison.trials if comparison.better(trial, plain)]
    choice = min([plain, *better], key=lambda trial: trial.loss)
    for side in sides[1:]:
        found = attempt_view(View(side), choice)
        if found is None or not comparison.better(found, choice):
            break
        choice = found
    if sides:
        found = attempt_view(replace(choice.candidates[0].view, mirrored=True), choice)
        if found is not None and comparison.better(found, choice):
            choice = found
    view = choice.candidates[0].view
    if view != usual:
        first = {trial.candidates[0]: trial for trial in comparison.trials}
        best = first[replace(choice.candidates[0], view=usual)]
        for candidate in others:
            found = first[candidate]
            gain, error = comparison.gain(best, found)
            if found is not best and gain < HOPELESS * error:
                attempt(replace(candidate, view=view), found.settings[0])
    average = comparison.average_best(view)
    if average is not None and comparison.better(average, choice):
        choice = average
    return choice, notes


def most_trials(comparison: Comparison, sides: Sequence[int]) -> int:
    """Heads that `search` compares at most: all at the usual size, views of one, all on a view."""
    return 4 * len(comparison.heads) + len(sides)


def no_promise(
    views: Views,
    part: tuple[NDArray[np.int64], Comparison],
    digests: Sequence[str],
    choice: Trial,
    candidate: Candidate,
) -> str | None:
    """Why another view is not worth computing: what it loses on a part of the examples.

    Args:
        views: Gives the features.
        part: From `Comparison.part`.
        digests: Of the compared examples.
        choice: The chosen head so far.
        candidate: The same head on another view.

    Returns:
        A line for the user; None where the view gains more than the standard error.
    """
    rows, few = part
    names = [digests[row] for row in rows]
    setting = choice.settings[0]

    def on_part(head: Candidate) -> Trial:
        for known in few.trials:  # of an earlier view
            if (known.candidates, known.settings) == ((head,), (setting,)):
                return known
        features = views.of(head, views.features(head.view, names))
        return few.try_candidate(head, features, setting, settled=True)

    before, after = on_part(choice.candidates[0]), on_part(candidate)
    gain, error = few.gain(after, before)
    if gain > error:
        return None
    return (
        f"{candidate.view.name}: tried on {len(rows)} examples alone, where the held-out loss is"
        f" {abs(gain):.3f} {'lower' if gain > 0 else 'higher'} (standard error {error:.3f})"
    )


@dataclass(frozen=True)
class Found:
    """A fitted head in its network.

    Args:
        evaluations: By split that was held out.
        notes: What the user should know about the head.
        trials: What was tried, as `Trial.row` gives it, with whether it was chosen.
        choice: What was chosen.
    """

    evaluations: dict[str, Evaluation]
    notes: list[str]
    trials: list[dict[str, Any]]
    choice: Trial


def tune_head(
    views: Views,
    model: nn.Module,
    seed: int,
    *,
    sides: Sequence[int] = (),
    afford: Callable[[View], bool] = lambda view: True,
) -> Found:
    """Chooses and fits the last layer of a network, and evaluates it on the held-out splits.

    Args:
        views: Features of the task's examples.
        model: The network, which gets the head.
        seed: Decides the folds.
        sides: Sides of the images to try, the usual one first; none for texts.
        afford: Whether there is time for a view.
    """
    task, progress = views.task, views.progress
    usual = View(sides[0] if sides else None)
    views.compute(usual.side)
    digests = task.feature_digests()
    labels, problem = task.targets("train"), task.problem
    problem.use_units()
    weights = problem.weights_of(labels)
    comparison = Comparison(
        labels,
        len(task.classes),
        problem.kind,
        weights=weights,
        groups=task.groups,
        seed=seed,
        widest=views.extractor.layer.in_features,
    )
    if comparison.possible:
        compared = [digests["train"][row] for row in comparison.rows]
        most = most_trials(comparison, sides)
        with progress.counting("comparing heads", most, "heads") as tried:
            choice, notes = search(views, comparison, compared, sides, afford, tried)
    else:
        plain = Candidate(usual, "last", heads_of(problem.kind)[0])
        choice = Trial((plain,), (1.0,), (1.0,), np.zeros(0), ())
        notes = []
    view = choice.candidates[0].view
    features = {split: views.features(view, names) for split, names in digests.items()}
    fit = fit_trial(
        choice,
        lambda candidate: views.of(candidate, features["train"]),
        labels,
        len(task.classes),
        weights,
        progress,
    )
    finish(views, model, choice, fit)
    rows = {split: values[:, -fit.weight.shape[1] :] for split, values in features.items()}
    remember(views, model, digests, rows)
    evaluations = {
        split: task.evaluate_scores(split, values @ fit.weight.T + fit.bias)
        for split, values in rows.items()
        if split != "train"
    }
    trials = [
        trial.row(comparison.labels) | {"chosen": trial is choice} for trial in comparison.trials
    ]
    return Found(evaluations, describe(choice, comparison, fit) + notes, trials, choice)


def finish(views: Views, model: nn.Module, choice: Trial, fit: Fit) -> None:
    """Writes the head into the network, which then computes the features that it was fitted on."""
    config: Any = model.config
    layer = views.task.head(model)
    if fit.weight.shape[1] < layer.in_features:
        layer = read_states(model, layer, [])
    config.average_mirrored = choice.candidates[0].view.mirrored
    install(layer, fit)


def remember(
    views: Views, model: nn.Module, digests: dict[str, list[str]], rows: dict[str, Floats]
) -> None:
    """Caches the features of the finished network, which later commands ask for."""
    store = extractor_of(views.task, model, views.extractor.device).store()
    for split, names in digests.items():
        missing = {name: at for at, name in enumerate(names) if name not in store}
        if missing:
            store.add(list(missing), rows[split][list(missing.values())])


def describe(choice: Trial, comparison: Comparison, fit: Fit) -> list[str]:
    """Lines about the chosen head."""
    how = "not chosen: a class has too few examples to hold some out"
    if comparison.possible:
        how = f"chosen by {comparison.count}-fold cross-validation"
    lines = [f"head: {choice.name} ({choice.setting_text}), {how}"]
    if choice.gain > 0:
        lines.append(
            f"its held-out loss is {choice.gain:.3f} below that of {comparison.plain.name}"
            f" (standard error {choice.error:.3f})"
        )
    if not fit.converged:
        lines.append("the head's solver was stopped before it converged")
    return lines
