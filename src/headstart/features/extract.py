"""Features: what goes into the last layer of a network, computed once and cached on disk.

A later run with other labels, splits or settings finds the features again by the hash of an
example's content and of the network with its preprocessing.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.data.features import FeatureStore
from headstart.data.passes import forward_passes
from headstart.nn.hooks import inputs_of
from headstart.nn.weights import weights_hash
from headstart.progress import Progress
from headstart.tasks.base import HeadTask

Floats = NDArray[np.float32]
Batches = Iterator[tuple[list[str], dict[str, Tensor]]]
WRITTEN_TOGETHER = 512  # examples after which features are written, so that little is lost
MEASURED = 16  # examples that the time of features is measured on
FEW = 32  # examples whose features take so little time that one pass measures it


def model_key(model: nn.Module, preprocessing: Mapping[str, Any]) -> str:
    """Hash of the weights below the head, the configuration and the preprocessing."""
    whole = weights_hash(model, getattr(model, "heads", ()))
    configuration: Any = model.config
    own = ("id2label", "label2id", "_name_or_path")
    config = {key: value for key, value in configuration.to_dict().items() if key not in own}
    whole.update(json.dumps([config, dict(preprocessing)], sort_keys=True, default=str).encode())
    digest: str = whole.hexdigest()
    return digest[:32]


@dataclass(frozen=True)
class Extractor:
    """A network whose features are wanted.

    Args:
        model: In evaluation mode, on its device.
        layer: Its last layer.
        preprocessing: What decides the inputs beside the examples, as JSON.
        batches: Gives inputs of examples in batches, with their digests.
        device: Where the network is.
        unit: What the examples are, in rates.
    """

    model: nn.Module
    layer: nn.Linear
    preprocessing: Mapping[str, Any]
    batches: Callable[[Sequence[str]], Batches]
    device: torch.device
    unit: str = "img"

    def store(self) -> FeatureStore:
        """The features that are cached on disk."""
        return FeatureStore(model_key(self.model, self.preprocessing))

    @torch.inference_mode()
    def compute(self, inputs: Mapping[str, Tensor]) -> Floats:
        """Features (B, D) of one batch."""
        with inputs_of(self.layer) as seen:
            self.model(**{key: value.to(self.device) for key, value in inputs.items()})
        features: Floats = seen[0].float().cpu().numpy()
        return features

    def parts(self, missing: Sequence[str]) -> Iterator[tuple[list[str], Floats]]:
        """Digests of examples with their features, batch by batch; both empty if none is read."""

        def one(batch: tuple[list[str], dict[str, Tensor]]) -> tuple[list[str], Floats]:
            names, inputs = batch
            return names, self.compute(inputs) if names else np.empty((0, 0), dtype=np.float32)

        return forward_passes(one, self.batches(missing), self.model)

    def fill(self, digests: Iterable[str], progress: Progress) -> FeatureStore:
        """The store with the features of these examples, computed where they are missing.

        Args:
            digests: Hashes of the content of the examples.
            progress: Shows the examples that are done.
        """
        store, wanted = self.store(), dict.fromkeys(digest for digest in digests if digest)
        missing = [digest for digest in wanted if digest not in store]
        if len(missing) < len(wanted):
            what = "images" if self.unit == "img" else self.unit
            progress.report(
                f"features of {len(wanted) - len(missing)} {what} are known from before"
            )
        done, began = 0, time.perf_counter()
        names: list[str] = []
        rows: list[Floats] = []
        if missing:
            progress.start("features", len(missing), unit=self.unit)
        try:
            for part, features in self.parts(missing):
                if part:
                    rows.append(features)
                    names += part
                if len(names) >= WRITTEN_TOGETHER:
                    store.add(names, np.concatenate(rows))
                    names, rows = [], []
                done += len(part)
                progress.update(done, {}, done / (time.perf_counter() - began))
        finally:  # what is done when the run is stopped is kept
            if names:
                store.add(names, np.concatenate(rows)[: len(names)])
        return store

    def found(self, digests: Sequence[str], progress: Progress) -> FeatureStore:
        """As `fill`, of features that were computed in this run: the cache may have lost them."""
        store = self.store()
        whole = all(digest in store for digest in digests if digest)
        return store if whole else self.fill(digests, progress)

    def seconds(self, missing: Sequence[str], sizes: Sequence[int]) -> float:
        """Time that the features of these examples will take, measured on a few of middle size."""
        if not missing:
            return 0.0
        order = sorted(range(len(missing)), key=lambda i: sizes[i])
        first = max(0, len(order) // 2 - MEASURED // 2)
        few = order[first : first + min(MEASURED, 1 + len(order) // FEW)]
        times = []
        # the first pass also allocates, and others may be disturbed; few examples take no time
        for _ in range(3 if len(missing) > FEW else 1):
            began = time.perf_counter()
            for _ in self.parts([missing[i] for i in few]):
                pass
            times.append(time.perf_counter() - began)
        return min(times) * sum(sizes) / sum(sizes[i] for i in few)


def extractor_of(task: HeadTask, model: nn.Module, device: torch.device) -> Extractor:
    """The extractor of the features that a task's head is fitted on."""
    layer = task.head(model)
    return Extractor(model, layer, task.preprocessing(), task.feature_inputs, device, task.unit)
