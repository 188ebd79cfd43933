"""A student that learns from a teacher: what both see, what the loss is, and who may teach."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headstart
from headstart import AutoImageProcessor, AutoModelForImageClassification, BitConfig
from headstart.cli.app import main
from headstart.data.options import DataOptions
from headstart.errors import ConfigError, DataError, TrainingInterrupted
from headstart.metrics.divergence import kl_divergence
from headstart.recipe import Recipe
from headstart.training import distill as module
from headstart.training.distill import Distillation, distill
from headstart.training.loop import Loop
from headstart.training.teacher import read_teacher

SMALL = {"steps": 6, "lr": 0.01, "batch_size": 8, "resize": 24, "crop": 20, "device": "cpu"}
STUDENT = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1], "num_groups": 4}


@pytest.fixture(scope="module")
def teacher(photos, tiny_model, tmp_path_factory):
    """A folder that knows the three colors of the photos."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    values = {"steps": 40, "lr": 0.05, "batch_size": 16, "resize": 24, "crop": 20, "device": "cpu"}
    headstart.train(photos, model=tiny_model, out=folder, **values)
    return folder


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Colored noise without labels, (24, 32, 28, 3)."""
    rng = np.random.default_rng(1)
    colors = rng.integers(0, 256, (24, 1, 1, 3))
    images = np.clip(colors + rng.integers(-40, 40, (24, 32, 28, 3)), 0, 255).astype(np.uint8)
    file = tmp_path_factory.mktemp("unlabelled") / "images.npz"
    np.savez(file, images=images)
    return file


def task_of(images, teacher, recipe=None, student="bit-mini", **extra) -> tuple:
    """A prepared task and its student."""
    options = DataOptions(extra={"teacher": str(teacher), **extra})
    task = Distillation.read(images, options)
    model = task.build(str(student), recipe or Recipe(crop=20, resize=24))
    task.prepare(None)
    return task, model


# What both see ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", [{"mixup": 1.0}, {"cutmix": 1.0}, {}])
def test_both_see_the_same_crop_and_the_same_mixture(unlabelled, tiny_model, mixing):
    seen = []

    def teacher(pixel_values):
        seen.append(pixel_values)
        return torch.zeros(len(pixel_values), 3)

    recipe = Recipe(crop=20, resize=26, augment="resized-crop", **mixing)
    token = module.teacher_function.set(teacher)
    try:
        task, model = task_of(unlabelled, module.FUNCTION, recipe, tiny_model)
    finally:
        module.teacher_function.reset(token)
    handle = model.register_forward_pre_hook(
        lambda network, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    examples = [task.example(i, np.random.default_rng(i)) for i in range(6)]
    batch = task.augment_batch(task.collate(examples), np.random.default_rng(5))
    seen.clear()
    task.loss(model, task.micro(batch, slice(0, 6), torch.device("cpu")))
    handle.remove()
    of_teacher, of_student = seen
    torch.testing.assert_close(of_teacher, of_student, rtol=0, atol=1e-6)
    assert of_teacher.std() > 0.1
    mixed = {key: value for key, value in batch.items() if key in ("image", "label")}
    plain = task.micro(mixed, slice(0, 6), torch.device("cpu"))["pixel_values"]
    assert torch.equal(plain, of_student) == (not mixing)


def test_each_sees_the_view_at_its_own_size_and_in_its_own_normalization(unlabelled, tiny_model):
    sizes = []

    def teacher(pixel_values):
        sizes.append(tuple(pixel_values.shape))
        return torch.zeros(len(pixel_values), 3)

    settings = {"teacher_size": 31, "teacher_mean": [0.0, 0.1, 0.2], "teacher_std": [1, 2, 4]}
    token = module.teacher_function.set(teacher)
    try:
        task, model = task_of(unlabelled, module.FUNCTION, student=tiny_model, **settings)
    finally:
        module.teacher_function.reset(token)
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(4)])
    assert batch["image"].shape == (4, 3, 31, 31)  # as much as the larger of the two sees
    inputs = task.micro(batch, slice(0, 4), torch.device("cpu"))
    assert inputs["pixel_values"].shape == (4, 3, 20, 20)
    task.loss(model, inputs)
    assert sizes[-1] == (4, 3, 31, 31)
    views = batch["image"].float() / 255
    shown = []
    task.teacher.call = lambda values: (shown.append(values), (torch.zeros(4, 3), None))[1]
    task.teacher(views)
    expected = (views - torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1)) / torch.tensor(
        [1.0, 2.0, 4.0]
    ).view(3, 1, 1)
    torch.testing.assert_close(shown[0], expected)


def test_mixtures_end_where_the_recipe_says(unlabelled, tiny_model, tmp_path, monkeypatch):
    mixed = []
    whole = Distillation.augment_batch
    monkeypatch.setattr(
        Distillation,
        "augment_batch",
        lambda self, batch, rng: mixed.append(1) or whole(self, batch, rng),
    )
    values = SMALL | {"steps": 8, "mix_fraction": 0.5}
    distill(tiny_model, unlabelled, student=BitConfig(**STUDENT), out=tmp_path / "run", **values)
    assert len(mixed) == 4


# What is learned ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_the_definition(temperature):
    rng = np.random.default_rng(0)
    logits, taught = rng.normal(size=(2, 5, 7)) * 4
    expected = []
    for student, teacher in zip(logits, taught, strict=True):
        p = np.exp(teacher / temperature) / np.exp(teacher / temperature).sum()
        q = np.exp(student / temperature) / np.exp(student / temperature).sum()
        terms = [a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)]
        expected.append(temperature**2 * sum(terms))
    found = kl_divergence(torch.tensor(logits), torch.tensor(taught), temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_labels_and_features_add_to_the_loss(photos, teacher, tiny_model):
    recipe = Recipe(crop=20, resize=24, mixup=1.0)
    task, model = task_of(photos, teacher, recipe, tiny_model, label_weight=0.5, feature_weight=2.0)
    model.eval()
    batch = task.collate([task.example(i, np.random.default_rng(i)) for i in range(5)])
    batch = task.augment_batch(batch, np.random.default_rng(3))
    inputs = task.micro(batch, slice(0, 5), torch.device("cpu"))
    loss, measures = task.loss(model, inputs)

    logits = model(pixel_values=inputs["pixel_values"]).logits
    taught, wanted = task.teacher(inputs["teacher_views"])
    share = float(batch["portion"])
    first, second = (batch["label"][rows] for rows in (slice(0, 5), batch["partner"]))
    each = [torch.nn.functional.cross_entropy(logits, y, reduction="sum") for y in (first, second)]
    features = model.bit(inputs["pixel_values"]).pooler_output.flatten(1)
    guess = getattr(model, module.PROJECTION)(features)
    wanted = (wanted - wanted.mean(1, keepdim=True)) / wanted.std(1, keepdim=True, correction=0)
    error = (guess - wanted).square().mean(1).sum()
    expected = kl_divergence(logits, taught, 1.0).sum()
    expected = expected + 0.5 * (share * each[0] + (1 - share) * each[1]) + 2.0 * error
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert measures["feature_error"].item() == pytest.approx(error.item(), rel=1e-3)
    loss.backward()
    assert getattr(model, module.PROJECTION).weight.grad.abs().sum() > 0
    task.finish(model)
    assert not [name for name in model.state_dict() if module.PROJECTION in name]


def test_labels_count_where_class_names_agree(photos, tmp_path, teacher):
    """The teacher knows bird, cat and dog; the data has cat, dog and fox."""
    folder = tmp_path / "others"
    for split in ("train", "val"):
        for name, other in (("cat", "cat"), ("dog", "dog"), ("bird", "fox")):
            (folder / split).mkdir(parents=True, exist_ok=True)
            (folder / split / other).symlink_to(photos / split / name)
    options = {"teacher": str(teacher), "label_weight": 1.0}
    task = Distillation.read(folder, DataOptions(extra=options))
    found = dict(zip(task.examples["train"].names, task.examples["train"].labels, strict=True))
    expected = {"cat": 1, "dog": 2, "fox": -1}
    assert {label for name, label in found.items()} == {1, 2, -1}
    assert all(label == expected[name.split("/")[-2]] for name, label in found.items())
    assert "1 of 3 classes of the data are not the teacher's (fox)" in "\n".join(task.found())

    task.build(str(teacher), Recipe(crop=20, resize=24))
    task.prepare(None)
    fox = next(i for i, label in enumerate(task.examples["train"].labels) if label < 0)
    batch = task.collate([task.example(fox, np.random.default_rng(0))])
    inputs = task.micro(batch, slice(0, 1), torch.device("cpu"))
    assert inputs["targets"].sum() == 0


def test_a_student_comes_to_agree_and_is_a_classifier(photos, teacher, tmp_path):
    values = SMALL | {"steps": 60, "batch_size": 16, "mixup": 0.0}
    made = distill(
        teacher,
        photos,
        student=BitConfig(**STUDENT),
        out=tmp_path / "run",
        label_weight=0.1,
        **values,
    )
    assert made.metrics["agreement"] > 0.8
    assert made.metrics["teacher_accuracy"] > 0.8
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "bird", 1: "cat", 2: "dog"}
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").size == {"height": 20, "width": 20}
    _, evaluated = headstart.evaluate(tmp_path / "run", photos, split="validation")
    assert evaluated.metrics["accuracy"] == pytest.approx(made.metrics["accuracy"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["task"] == "image-classification"
    assert any(str(teacher) in note for note in results["notes"])


@pytest.mark.parametrize(
    "student",
    [
        headstart.CvtConfig(embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 1, 2]),
        headstart.BeitConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=64,
            patch_size=16,
        ),
    ],
    ids=["cvt", "beit"],
)
def test_students_of_other_families(unlabelled, teacher, tmp_path, student):
    values = SMALL | {"steps": 2, "crop": 64, "resize": 72}
    made = distill(
        teacher, unlabelled, student=student, out=tmp_path / "run", feature_weight=1.0, **values
    )
    assert made.metrics["kl"] >= 0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert type(model.config) is type(student)
    assert model.config.id2label == {0: "bird", 1: "cat", 2: "dog"}


# Resume -------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_run_that_was_not_stopped(unlabelled, teacher, tmp_path, monkeypatch):
    values = SMALL | {"steps": 10, "checkpoint_every": 2, "eval_every": 5, "ema": 0.9}
    student = BitConfig(**STUDENT)

    def run(out, **more):
        return distill(teacher, unlabelled, out=out, feature_weight=1.0, **more)

    whole = run(tmp_path / "whole", student=student, **values)
    update = Loop.update

    def stopped(self, batch):
        if self.step == 6:
            raise TrainingInterrupted("stopped by the test")
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", stopped)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "broken", student=student, **values)
    broken = run(tmp_path / "broken", resume=True)

    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert whole.metrics == broken.metrics
    logs = []
    for name in ("whole", "broken"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        logs.append([{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines])
    assert logs[0] == logs[1]


def test_the_report_of_a_run_that_was_killed_before_it_is_written(unlabelled, teacher, tmp_path):
    values = {"student": BitConfig(**STUDENT), "out": tmp_path, "feature_weight": 1.0, **SMALL}
    made = distill(teacher, unlabelled, **values)
    page = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    again = distill(teacher, unlabelled, out=tmp_path, resume=True)
    assert again.metrics == made.metrics
    table = page[page.index("Student and teacher") :].partition("</table>")[0]
    assert table.count("<td") > 3 and table in (tmp_path / "report.html").read_text()


def test_a_resumed_run_keeps_its_settings(unlabelled, teacher, tiny_model, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def stopped(self, batch):
        raise TrainingInterrupted("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", stopped)
        with pytest.raises(TrainingInterrupted):
            distill(teacher, unlabelled, student=BitConfig(**STUDENT), out=out, **SMALL)
    with pytest.raises(ConfigError, match="has temperature=1.0, not 4.0"):
        distill(teacher, unlabelled, out=out, temperature=4.0, resume=True)
    with pytest.raises(ConfigError, match=f"has teacher={teacher}, not {tiny_model}"):
        distill(tiny_model, unlabelled, out=out, resume=True)


def test_a_function_is_given_again_to_resume(unlabelled, tmp_path, monkeypatch):
    def teacher(pixel_values):
        return pixel_values.mean((2, 3))

    def stopped(self, batch):
        raise TrainingInterrupted("stopped by the test")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "update", stopped)
        with pytest.raises(TrainingInterrupted):
            distill(teacher, unlabelled, student=BitConfig(**STUDENT), out=out, **SMALL)
    with pytest.raises(ConfigError, match="go on with it in Python"):
        headstart.train(unlabelled, out=out, task="distillation", resume=True)
    made = distill(teacher, unlabelled, out=out, resume=True)
    assert made.metrics["kl"] >= 0


# Teachers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(teacher):
    """Images in 0..1 as the teacher sees them, and its logits."""
    model = AutoModelForImageClassification.from_pretrained(teacher).eval()
    processor = AutoImageProcessor.from_pretrained(teacher)
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    with torch.no_grad():
        logits = model(**processor(list(images), return_tensors="pt")).logits
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255, logits


def test_a_checkpoint_teaches(teacher, answers):
    found = read_teacher(teacher)
    logits, features = found(answers[0])
    torch.testing.assert_close(logits, answers[1], rtol=0, atol=1e-4)
    assert features.shape == (3, 24)
    assert (found.classes, found.size) == (["bird", "cat", "dog"], 20)


def test_an_optimized_folder_teaches(teacher, answers, tmp_path):
    with pytest.raises(SystemExit, match="0"):
        main(["optimize", str(teacher), "--out", str(tmp_path / "fast"), "--engine", "torch"])
    found = read_teacher(tmp_path / "fast")
    logits, features = found(answers[0])
    torch.testing.assert_close(logits, answers[1], rtol=0, atol=1e-4)
    assert features is None
    assert (found.classes, found.size) == (["bird", "cat", "dog"], 20)


@pytest.mark.parametrize("suffix, to", [(".onnx", "onnx"), (".xml", "openvino")])
@pytest.mark.parametrize("inside", [False, True])
def test_a_file_teaches(teacher, answers, tmp_path, suffix, to, inside):
    pytest.importorskip("onnxruntime" if to == "onnx" else to)
    model = AutoModelForImageClassification.from_pretrained(teacher).eval()
    processor = AutoImageProcessor.from_pretrained(teacher)
    path = tmp_path / f"net{suffix}"
    example = {"pixel_values": torch.zeros(2, 3, 20, 20)}
    headstart.export(model, path, to=to, example=example, processor=processor, normalize=inside)
    found = read_teacher(path)
    logits, features = found(answers[0])
    torch.testing.assert_close(logits, answers[1], rtol=0, atol=1e-3)
    assert features is None
    assert (found.classes, found.size) == (["bird", "cat", "dog"], 20)


def test_functions_teach(unlabelled, tiny_model, tmp_path):
    class Network(torch.nn.Module):
        """Gives logits and features; its dropout must be off."""

        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.9)

        def forward(self, pixel_values):
            features = self.dropout(pixel_values.flatten(1)[:, :5])
            return features[:, :3], features

    found = read_teacher(Network())
    found.mean, found.std = (0.0,) * 3, (1.0,) * 3
    views = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(found(views)[1], views.flatten(1)[:, :5])
    found = read_teacher(lambda values: values.mean((2, 3)))
    found.mean, found.std = (0.0,) * 3, (1.0,) * 3
    logits, features = found(views)
    torch.testing.assert_close(logits, views.mean((2, 3)))
    assert features is None


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 0.0}, "temperature=0.0; it must be above 0"),
        ({"label_weight": -1.0}, "label_weight=-1.0; it must not be negative"),
        ({"teacher_mean": [0.5]}, r"teacher_mean=\(0.5,\); expected three numbers"),
        ({"teacher_std": [1, 0, 1]}, "every number must be above 0"),
        ({"tune": "head"}, "tune"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1"),
        ({"class_weights": "balanced"}, "class_weights"),
        ({"feature_weight": 1.0, "lora_rank": 2}, "lora_rank"),
    ],
)
def test_what_cannot_be_honored_is_refused(unlabelled, teacher, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        distill(teacher, unlabelled, student="bit-mini", out=tmp_path / "run", **SMALL | settings)


def test_labels_that_the_teacher_does_not_know_are_refused(photos, tmp_path):
    with pytest.raises(DataError, match=r"no class of the data \(bird, cat, dog, …\) is one of"):
        distill(
            lambda x: x.mean((2, 3)),
            photos,
            student="bit-mini",
            out=tmp_path / "run",
            label_weight=1.0,
        )


def test_features_that_a_teacher_does_not_give_are_refused(unlabelled, tmp_path):
    with pytest.raises(ConfigError, match="feature_weight needs a teacher that gives features"):
        distill(
            lambda x: x.mean((2, 3)),
            unlabelled,
            student="bit-mini",
            out=tmp_path / "run",
            feature_weight=1.0,
            **SMALL,
        )


def test_a_file_that_is_no_teacher_is_refused(tmp_path):
    for name in ("net.onnx", "net.xml"):
        with pytest.raises(ConfigError, match="cannot read the teacher"):
            read_teacher(tmp_path / name)
        (tmp_path / name).write_bytes(b"nothing")
        (tmp_path / "net.bin").write_bytes(b"nothing")
        with pytest.raises(ConfigError, match="is not a"):
            read_teacher(tmp_path / name)


def test_a_text_network_is_no_student(unlabelled, teacher, tmp_path):
    config = headstart.YosoConfig(vocab_size=40, hidden_size=24, num_hidden_layers=1)
    with pytest.raises(ConfigError, match="temperature=2.0 is for students of images"):
        distill(teacher, unlabelled, student=config, out=tmp_path / "run", temperature=2.0)
    with pytest.raises(ConfigError, match="hidden_weight=1.0 is for students of texts"):
        distill(teacher, unlabelled, student="bit-mini", out=tmp_path / "run", hidden_weight=1.0)


# Command line -------------------------------------------------------------------------------------


def test_the_command(unlabelled, teacher, tmp_path, capsys):
    config = tmp_path / "student.json"
    config.write_text(json.dumps({"model_type": "bit", **STUDENT}))
    out = tmp_path / "run"
    options = ["--steps=3", "--batch-size=8", "--crop=20", "--device=cpu", "--temperature=2"]
    command = [
        "distill",
        str(teacher),
        str(unlabelled),
        "--student",
        str(config),
        "--out",
        str(out),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*command, *options])
    assert ended.value.code == 0
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.hidden_sizes == [16, 24]
    assert json.loads((out / "run.json").read_text())["options"]["extra"]["temperature"] == 2.0
    with pytest.raises(SystemExit) as ended:
        main([*command[:3], "--out", str(tmp_path / "other"), *options])
    assert ended.value.code == 2
    assert "which student?" in capsys.readouterr().err
