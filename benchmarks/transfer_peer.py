"""One run of the Hugging Face Trainer for `transfer.py`, in an environment of its own: prints
accuracy and time as JSON.

python benchmarks/transfer_peer.py '{"model": …, "data": …, "rate": …, "seconds": …, "steps": …,
"batch": …}'
"""

import json
import sys
import tempfile
import time

import numpy as np
import torch
from transformers import BitForImageClassification, Trainer, TrainerCallback, TrainingArguments

MEAN = STD = 0.5  # bit-mini's


class Images(torch.utils.data.Dataset):
    """Images as arrays.

    The training set is cropped at random and mirrored, as headstart does it.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, crop: int | None) -> None:
        self.images, self.labels, self.crop = images, labels, crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = torch.from_numpy(self.images[index]).permute(2, 0, 1).float() / 255
        if self.crop is not None:
            top, left = (
                int(torch.randint(0, image.shape[1] - self.crop + 1, ())) for _ in range(2)
            )
            image = image[:, top : top + self.crop, left : left + self.crop]
            image = image.flip(2) if torch.rand(()) < 0.5 else image
        return {
            "pixel_values": (image - MEAN) / STD,
            "labels": torch.tensor(int(self.labels[index])),
        }


class Clock(TrainerCallback):
    """Notes the processor's time after each step."""

    def __init__(self) -> None:
        self.cpu: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.cpu.append(time.process_time())


def run(
    task: dict, data: dict[str, np.ndarray], steps: int
) -> tuple[BitForImageClassification, Clock]:
    """Trains a new copy for so many steps of AdamW with the Trainer's own linear schedule."""
    torch.manual_seed(0)
    model = BitForImageClassification.from_pretrained(
        task["model"], num_labels=int(data["train_labels"].max()) + 1, ignore_mismatched_sizes=True
    )
    crop = data["validation_images"].shape[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=task["batch"],
            learning_rate=task["rate"],
            warmup_ratio=0.1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_drop_last=len(data["train_images"]) >= task["batch"],
        )
        clock = Clock()
        train_set = Images(data["train_images"], data["train_labels"], crop)
        Trainer(model, arguments, train_dataset=train_set, callbacks=[clock]).train()
    return model.eval(), clock


def main() -> None:
    task = json.loads(sys.argv[1])
    if "pixels" in task:  # the features of the untouched weights
        pixels = torch.from_numpy(np.load(task["pixels"]))
        with torch.inference_mode():
            print(
                json.dumps(
                    BitForImageClassification.from_pretrained(task["model"])
                    .eval()(pixel_values=pixels)
                    .logits.tolist()
                )
            )
        return
    data = dict(np.load(task["data"]))
    steps = task["steps"]
    if steps is None:  # as many as fit into the time, measured on a few
        _, few = run(task, data, 10)
        steps = max(1, round(task["seconds"] / float(np.mean(np.diff(few.cpu)[1:]))))
    began = time.process_time()
    model, clock = run(task, data, steps)
    spent = time.process_time() - began
    held = Images(data["validation_images"], data["validation_labels"], None)
    with torch.inference_mode():
        batches = [
            torch.stack([held[i]["pixel_values"] for i in range(s, min(s + 32, len(held)))])
            for s in range(0, len(held), 32)
        ]
        predicted = torch.cat(
            [model(pixel_values=batch).logits.argmax(1) for batch in batches]
        ).numpy()
    accuracy = float((predicted == data["validation_labels"]).mean())
    per_step = float(np.median(np.diff(clock.cpu))) if len(clock.cpu) > 1 else None
    print(
        json.dumps(
            {
                "accuracy": accuracy,
                "cpu_seconds": spent,
                "steps": steps,
                "rate": task["rate"],
                "cpu_seconds_a_step": per_step,
            }
        )
    )


if __name__ == "__main__":
    main()
