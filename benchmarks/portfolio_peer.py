"""The Trainer of Hugging Face or fastai's one-cycle schedule, for `portfolio_tuned.py`.

    python benchmarks/portfolio_peer.py '{"who": "trainer" | "fastai", "model": …, "data": …,
        "rates": […], "seconds": …, "batch": …, "check": …}'

Runs in an environment of its own and prints JSON: for every rate the answers on the held-out
images, CPU seconds and steps. Every weight is trained from the same start, with random crops and
mirror images, for as many steps as the CPU seconds allow. `check` only compares the two networks.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import BitForImageClassification

MEAN = STD = 0.5  # bit-mini's
FEW = 6  # steps that the time of one is measured on


class Images(torch.utils.data.Dataset):
    """Images as arrays, cropped at random and mirrored."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, crop: int) -> None:
        self.images, self.labels, self.crop = images, labels, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).float() / 255
        top, left = (int(torch.randint(0, image.shape[1] - self.crop + 1, ())) for _ in range(2))
        image = image[:, top : top + self.crop, left : left + self.crop]
        image = image.flip(2) if torch.rand(()) < 0.5 else image
        return {
            "pixel_values": (image - MEAN) / STD,
            "labels": torch.tensor(int(self.labels[index])),
        }


def network(task: dict, classes: int) -> BitForImageClassification:
    """A new copy of the pretrained network, with a new head."""
    torch.manual_seed(task["seed"])
    return BitForImageClassification.from_pretrained(
        task["model"], num_labels=classes, ignore_mismatched_sizes=True
    )


def with_trainer(
    task: dict, data: Images, classes: int, rate: float, steps: int
) -> torch.nn.Module:
    """AdamW with the Trainer's own linear schedule."""
    from transformers import Trainer, TrainingArguments

    model = network(task, classes)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=task["batch"],
            learning_rate=rate,
            warmup_ratio=0.1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            seed=task["seed"],
        )
        Trainer(model, arguments, train_dataset=data).train()
    return model


class Scores(torch.nn.Module):
    """A network that fastai calls with pixels alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits


class Endless:
    """As many batches as the schedule has steps: one "epoch", so that it ends on time."""

    def __init__(self, data: Images, batch: int, steps: int) -> None:
        self.dataset, self.steps, self.bs = data, steps, batch
        self.loader = torch.utils.data.DataLoader(data, batch, shuffle=True)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        passes = itertools.chain.from_iterable(self.loader for _ in itertools.count())
        for batch in itertools.islice(passes, self.steps):
            yield batch["pixel_values"], batch["labels"]


def with_fastai(task: dict, data: Images, classes: int, rate: float, steps: int) -> torch.nn.Module:
    """fastai's Adam with `fit_one_cycle`: the head alone for a tenth of the steps, then all."""
    from fastai.callback.schedule import Learner  # with `fit_one_cycle`
    from fastai.data.core import DataLoaders

    model = Scores(network(task, classes))

    def split(scores: Scores) -> list[list[torch.nn.Parameter]]:
        inner = scores.model
        return [list(inner.bit.parameters()), list(inner.classifier.parameters())]

    def fit(steps: int, rates: slice | float) -> None:
        learner.dls = DataLoaders(Endless(data, task["batch"], steps), [])
        learner.fit_one_cycle(1, rates)

    learner = Learner(
        DataLoaders(Endless(data, task["batch"], 1), []),
        model,
        loss_func=torch.nn.functional.cross_entropy,
        splitter=split,
    )
    with learner.no_bar(), learner.no_logging():
        head = max(1, steps // 10)
        learner.freeze()
        fit(head, slice(rate))
        learner.unfreeze()
        fit(max(1, steps - head), slice(rate / 200, rate / 2))  # as `Learner.fine_tune`
    return model.model


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if "check" in task:
        model = BitForImageClassification.from_pretrained(task["model"]).eval()
        with torch.inference_mode():
            found = model(pixel_values=torch.from_numpy(np.load(task["check"]))).logits
        print(json.dumps(found.tolist()))
        return
    fits: dict[str, Callable[..., torch.nn.Module]] = {
        "trainer": with_trainer,
        "fastai": with_fastai,
    }
    data, fit = dict(np.load(task["data"])), fits[task["who"]]
    classes = int(data["train_labels"].max()) + 1
    held = torch.from_numpy(data["test_images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    train = Images(data["train_images"], data["train_labels"], held.shape[2])
    fit(task, train, classes, task["rates"][0], 2)  # imports and allocates
    times = []
    for steps in (1, 1 + FEW):
        began = time.process_time()
        fit(task, train, classes, task["rates"][0], steps)
        times.append(time.process_time() - began)
    one = (times[1] - times[0]) / FEW
    steps = max(2, round((task["seconds"] - times[0] + one) / one))
    found = []
    for rate in task["rates"]:
        began = time.process_time()
        model = fit(task, train, classes, rate, steps).eval()
        spent = time.process_time() - began
        with torch.inference_mode():
            logits = [model(pixel_values=part).logits for part in held.split(64)]
        answers = torch.cat(logits).argmax(1).tolist()
        found.append({"rate": rate, "steps": steps, "seconds": spent, "answers": answers})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
