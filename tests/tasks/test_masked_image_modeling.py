"""Masked image modeling.

Views and their codes, the loss on hidden patches, and runs that classification goes on from.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from headstart import (
    BeitConfig,
    BeitForMaskedImageModeling,
    BeitImageProcessor,
    DalleImageTokenizer,
)
from headstart.cli.app import main as command_line
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError
from headstart.pipelines.masked_image_modeling import (
    MaskedImageModelingPipeline,
    panels,
    tokenizer_view,
)
from headstart.recipe import Recipe
from headstart.tasks import task_class
from headstart.training.evaluate import evaluate
from headstart.training.loop import Loop
from headstart.training.run import train


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer whose codes follow the color of a square.

    Its first convolution is made so that the answer is known.
    """
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    made = DalleImageTokenizer(
        vocab_size=12, hidden_size=8, blocks_per_group=1, decoder_init_size=8
    )
    with torch.no_grad():
        for _ in range(3):  # spread the scores, so that different images have different codes
            made.encoder.head.weight.mul_(5)
        made.encoder.head.bias.sub_(made(torch.rand(8, 3, 32, 32)).mean((0, 2, 3)))
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=48,
        patch_size=8,
        vocab_size=16,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        drop_path_rate=0.0,
    )
    BeitForMaskedImageModeling(config).save_pretrained(folder)
    BeitImageProcessor(size=48, crop_size=48).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 9), ("val", 5)):
        (folder / split / "deep").mkdir(parents=True)
        for i in range(count):
            rng = np.random.default_rng(i + 100 * (split == "val"))
            blocks = rng.integers(0, 256, (5, 6, 3)).repeat(12, 0).repeat(12, 1)
            Image.fromarray(blocks.astype(np.uint8)).save(folder / split / "deep" / f"{i}.png")
    return folder


def task_of(path, tokenizer=None, **extra):
    options = DataOptions(extra={**extra, **({"tokenizer": str(tokenizer)} if tokenizer else {})})
    return task_class("masked-image-modeling").read(path, options)


def ready(path, tokenizer, network, folder=None, recipe=None, **extra):
    task = task_of(path, tokenizer, **extra)
    model = task.build(str(network), recipe or Recipe(augment="resized-crop", resize=60))
    task.prepare(folder)
    return task, model


def test_images_need_no_labels(images, tmp_path):
    task = task_of(images)
    assert task.splits == {"train": 9, "validation": 5}
    facts = task.facts()
    assert (facts.examples, facts.height, facts.width, facts.task) == (
        9,
        60,
        72,
        "masked-image-modeling",
    )
    flat = task_of(images / "train", views=2)
    assert flat.splits == {"train": 7, "validation": 2} and any(
        "held out" in line for line in flat.found()
    )
    with pytest.raises(DataError, match="holds no images"):
        task_of(tmp_path)
    with pytest.raises(ConfigError, match="mask_ratio=1.5"):
        task_of(images, mask_ratio=1.5)


def write_other_sources(images, tmp_path, datasets):
    """The images as arrays, labelled or not, a table, tars, a saved data set and Parquet."""
    files = {split: sorted((images / split / "deep").iterdir()) for split in ("train", "val")}
    arrays = {
        split: np.stack([np.asarray(Image.open(file)) for file in found])
        for split, found in files.items()
    }
    for name, labels in (("labelled", {"labels": np.zeros(9, np.int64)}), ("bare", {})):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "train.npz", images=arrays["train"], **labels)
        np.savez(
            tmp_path / name / "val.npz",
            images=arrays["val"],
            **({"labels": np.arange(5) + 90} if labels else {}),
        )
    (tmp_path / "table.csv").write_text(
        "".join(
            ["file,split\n", *(f"{each},{split}\n" for split in files for each in files[split])]
        )
    )
    (tmp_path / "tars").mkdir()
    for split, found in files.items():
        with tarfile.open(tmp_path / "tars" / f"{split}.tar", "w") as tar:
            for file in found:
                tar.add(file, file.name)
    made = {
        split: datasets.Dataset.from_dict({"img": list(map(str, found))})
        for split, found in files.items()
    }
    saved = datasets.DatasetDict(
        {split: rows.cast_column("img", datasets.Image()) for split, rows in made.items()}
    )
    saved.save_to_disk(tmp_path / "saved")
    saved["train"].to_parquet(tmp_path / "one.parquet")


def test_labels_are_not_looked_at(images, tmp_path):
    """Arrays, tables, tars and saved data sets, labelled or not, whose classes would not do.

    The same images are read from each.
    """
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write_other_sources(images, tmp_path, datasets)
    expected = task_of(images)
    for name in ("table.csv", "tars", "saved"):
        assert task_of(tmp_path / name).digests_of == expected.digests_of, name
    assert task_of(tmp_path / "labelled").digests_of == task_of(tmp_path / "bare").digests_of
    alone = task_of(tmp_path / "one.parquet")
    assert sum(alone.splits.values()) == 9 and set().union(*alone.digests_of.values()) == set(
        expected.digests_of["train"]
    )
    for name in ("labelled", "saved"):
        assert task_of(tmp_path / name).splits == {"train": 9, "validation": 5}
    (tmp_path / "bare" / "val.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"val\.npz is not a readable \.npz file"):
        task_of(tmp_path / "bare")
    with pytest.raises(DataError, match="which column holds the image"):
        (tmp_path / "other.csv").write_text("a,b\n1,2\n")
        task_of(tmp_path / "other.csv")


def test_a_model_without_tokenizer_says_what_to_do(images, network):
    with pytest.raises(ConfigError, match=r"--option tokenizer=dall-e"):
        task_of(images).build(str(network), Recipe())


def test_codes_are_those_of_the_view_that_the_network_sees(images, tokenizer, network):
    task, model = ready(images, tokenizer, network)
    assert model.config.vocab_size == 12 and task.codes["train"].shape == (9, 4, 6, 6)
    encode = DalleImageTokenizer.from_pretrained(tokenizer)
    for index, number in ((0, 0), (3, 2), (8, 3)):
        view = tokenizer_view(task.view("train", index, number), (6, 6))
        assert view.shape == (48, 48, 3)
        codes = encode.encode(torch.from_numpy(view.copy()).permute(2, 0, 1)[None].float() / 255)[0]
        assert np.array_equal(codes.numpy(), task.codes["train"][index, number])
    assert not np.array_equal(task.view("train", 0, 0), task.view("train", 0, 1))
    assert len(np.unique(task.codes["train"])) > 3
    # validation shows whole images
    assert task.codes["validation"].shape == (5, 1, 6, 6) and task.view(
        "validation", 0, 0
    ).shape == (60, 60, 3)


def test_an_example_pairs_view_and_codes(images, tokenizer, network):
    task, _ = ready(images, tokenizer, network)
    seen = set()
    for seed in range(12):
        one = task.example(2, np.random.default_rng(seed))
        assert (
            one["image"].shape == (3, 48, 48)
            and one["mask"].shape == (6, 6)
            and one["mask"].sum() <= 14
        )
        number = next(
            k for k in range(4) if np.array_equal(task.codes["train"][2, k], one["codes"].numpy())
        )
        seen.add(number)
        again = task.example(2, np.random.default_rng(seed))
        assert all(torch.equal(one[key], again[key]) for key in one)
    assert len(seen) > 1


def test_codes_are_kept_on_disk(images, tokenizer, network, tmp_path, monkeypatch):
    task, _ = ready(images, tokenizer, network, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert {"train-codes.npy", "train-codes.json", "validation-codes.npy"} <= files
    calls = []
    original = DalleImageTokenizer.encode
    monkeypatch.setattr(
        DalleImageTokenizer,
        "encode",
        lambda self, images: calls.append(len(images)) or original(self, images),
    )
    again, _ = ready(images, tokenizer, network, tmp_path)
    assert not calls and np.array_equal(again.codes["train"], task.codes["train"])
    ready(images, tokenizer, network, tmp_path, views=2)  # other views: made anew
    assert sum(calls) == 2 * 9  # the five of the validation data are kept
    calls.clear()
    (tmp_path / "train-codes.json").unlink()  # a run that was killed before the codes were whole
    ready(images, tokenizer, network, tmp_path, views=2)
    assert sum(calls) == 18


def test_the_loss_counts_hidden_patches_alone(images, tokenizer, network):
    task, model = ready(images, tokenizer, network)
    model.eval()
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(4)])
    inputs = task.micro(batch, slice(0, 4), torch.device("cpu"))
    with torch.no_grad():
        total, measures = task.loss(model, inputs)
        logits = model(inputs["pixel_values"], inputs["bool_masked_pos"]).logits.log_softmax(-1)
        expected, right = 0.0, 0
        for b, p in torch.nonzero(inputs["bool_masked_pos"]).tolist():
            code = int(inputs["codes"][b, p])
            expected -= float(logits[b, p, code])
            right += int(logits[b, p].argmax()) == code
        assert abs(float(total) - expected) < 1e-3 and int(measures["code_accuracy"]) == right
        assert task.weight(batch) == batch["mask"].sum()
        other = {
            **inputs,
            "codes": torch.where(
                inputs["bool_masked_pos"], inputs["codes"], (inputs["codes"] + 1) % 12
            ),
        }
        assert torch.equal(task.loss(model, other)[0], total)
        parts = sum(
            float(task.loss(model, task.micro(batch, rows, torch.device("cpu")))[0])
            for rows in (slice(0, 1), slice(1, 4))
        )
    assert abs(parts - float(total)) < 1e-3


def test_some_images_are_evaluated(images, tokenizer, network):
    task, model = ready(images, tokenizer, network)
    rows, device = np.array([1]), torch.device("cpu")
    part = task.subset("validation", rows).evaluate(model.eval(), "validation", device)
    every = task.evaluate(model, "validation", device)
    assert part.examples == 1 < every.examples
    assert (part.details["codes"] == every.details["codes"][rows]).all()


def test_hidden_pixels_are_not_seen(images, tokenizer, network):
    """What lies under the mask must not reach the network, or it would learn to copy."""
    task, model = ready(images, tokenizer, network)
    model.eval()
    one = task.collate([task.example(0, np.random.default_rng(0))])
    inputs = task.micro(one, slice(0, 1), torch.device("cpu"))
    hidden = one["mask"].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]  # (1, 1, 48, 48)
    changed = torch.where(hidden, torch.randn_like(inputs["pixel_values"]), inputs["pixel_values"])
    with torch.no_grad():
        a, b = (
            model(x, inputs["bool_masked_pos"]).logits for x in (inputs["pixel_values"], changed)
        )
    assert torch.equal(a, b)


def test_from_scratch_draws_new_weights(images, tokenizer, network):
    task = task_of(images, tokenizer, scratch=True)
    model = task.build(str(network), Recipe(seed=3))
    same = task_of(images, tokenizer, scratch=True).build(str(network), Recipe(seed=3))
    loaded = task_of(images, tokenizer).build(str(network), Recipe())
    name = "beit.encoder.layer.0.intermediate.dense.weight"
    weights = [m.state_dict()[name] for m in (model, same, loaded)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(
        weights[2], BeitForMaskedImageModeling.from_pretrained(network).state_dict()[name]
    )


def test_panels_show_the_guess_behind_the_mask(tokenizer):
    tok = DalleImageTokenizer.from_pretrained(tokenizer)
    true = torch.randint(0, 12, (3, 4), generator=torch.Generator().manual_seed(0))
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    image = np.full((24, 32, 3), 7, np.uint8)
    original, masked, best, codes = panels(image, mask, true, true, tok)
    assert (
        np.array_equal(original, image)
        and (masked[8:16, 16:24] == 128).all()
        and (masked[:8] == 7).all()
    )
    assert np.array_equal(best, codes) and best.shape == image.shape  # all codes guessed
    wrong = panels(image, mask, true, (true + 1) % 12, tok)
    assert not np.array_equal(wrong[2], codes) and np.array_equal(wrong[3], codes)
    tok.decoder = None
    assert len(panels(image, mask, true, true, tok)) == 2


@pytest.fixture(scope="session")
def result(images, tokenizer, network, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    return train(
        images,
        model=str(network),
        out=out,
        task="masked-image-modeling",
        recipe="finetune",
        steps=40,
        batch_size=8,
        lr=3e-3,
        task_options={"tokenizer": tokenizer, "views": 2},
        eval_every=100,
        checkpoint_every=100,
    )


def test_a_run_learns_and_leaves_a_folder(result):
    lines = [
        json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    assert (result.folder / "image_tokenizer" / "model.safetensors").is_file()
    page = (result.folder / "report.html").read_text()
    assert (
        "Prediction of hidden codes" in page
        and "Reconstructions" in page
        and "hidden codes are right" in page
    )


def test_evaluate_repeats_the_run(result, images):
    _, found = evaluate(result.folder, images)
    assert found.metrics == pytest.approx(result.metrics, abs=1e-6)


def test_pipeline_paints(result, images, tmp_path):
    imagine = MaskedImageModelingPipeline(result.folder)
    found = imagine(images / "val" / "deep" / "0.png")
    assert (
        len(found["panels"]) == 4 and found["codes"].shape == (6, 6) and 0 <= found["accuracy"] <= 1
    )
    written = imagine.write(images / "val" / "deep" / "0.png", tmp_path / "x")
    with Image.open(written["reconstruction_file"]) as image:
        assert image.size == (4 * 48 + 3 * 6, 48)


def run_command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(arguments)
    assert not end.value.code


def test_command_line_round_trip(result, images, tmp_path, capsys):
    run_command(
        [
            "predict",
            str(result.folder),
            str(images / "val"),
            "--out",
            str(tmp_path / "out"),
            "--json",
        ]
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 5 and all(Path(file).is_file() for line in lines for file in line["files"])
    run_command(["evaluate", str(result.folder), str(images), "--json"])
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(result.metrics, abs=1e-6)


def test_a_broken_run_goes_on_bit_for_bit(images, tokenizer, network, tmp_path, monkeypatch):
    values = {
        "recipe": "finetune",
        "steps": 8,
        "batch_size": 4,
        "checkpoint_every": 3,
        "eval_every": 100,
        "drop_path": 0.1,
    }
    values |= {
        "model": str(network),
        "task": "masked-image-modeling",
        "task_options": {"tokenizer": tokenizer},
    }
    whole = train(images, out=tmp_path / "whole", **values)
    update = Loop.update

    def power_cut(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(images, out=tmp_path / "broken", **values)
    monkeypatch.setattr(Loop, "update", update)
    resumed = train(images, out=tmp_path / "broken", resume=True)
    one, two = (
        load_file(folder / "model.safetensors") for folder in (whole.folder, resumed.folder)
    )
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert whole.metrics == resumed.metrics


def test_classification_goes_on_from_it(result, photos, tmp_path):
    values = {"steps": 40, "batch_size": 8, "lr": 2e-3, "label_smoothing": 0.0}
    tuned = train(
        photos, model=result.folder, out=tmp_path / "classes", recipe="finetune", **values
    )
    assert tuned.metrics["accuracy"] > 0.5  # three colors
    name = "beit.embeddings.patch_embeddings.projection.weight"
    pretrained = BeitForMaskedImageModeling.from_pretrained(result.folder).state_dict()[name]
    from headstart import BeitForImageClassification

    started = BeitForImageClassification.from_pretrained(result.folder, num_labels=3)
    assert torch.equal(started.state_dict()[name], pretrained)
