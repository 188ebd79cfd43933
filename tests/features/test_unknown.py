"""None of my classes: p-values hold on new examples, others get small ones, damage is refused."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart
from headstart import AutoModelForImageClassification
from headstart.data.predictions import classify
from headstart.errors import ConfigError
from headstart.features.unknown import fit_reference
from headstart.pipelines.base import pipeline
from headstart.pipelines.confidence import UNKNOWN, Choice, Confidence
from headstart.pipelines.unknown import FILE, Reference
from photo_data import make_class_folders


def examples(rng, classes, count, width=24):
    """Normal clouds around centers that depend on the class alone, stretched along some axes."""
    centers = np.random.default_rng(5).normal(0, 4, (8, width))
    stretch = np.linspace(0.3, 3, width)
    labels = rng.choice(classes, count)
    x = centers[labels] + rng.normal(0, 1, (count, width)) * stretch
    return x.astype(np.float32), labels


def test_p_values_hold_on_new_examples_of_the_known_classes():
    """Over several training sets, at most a fraction p of them has one of at most p."""
    rng = np.random.default_rng(1)
    small = {0.05: [], 0.2: []}
    for seed in range(8):
        x, labels = examples(rng, [0, 1, 2, 3], 160)
        found = fit_reference(x, labels, seed=seed)
        p = found.p_values(torch.from_numpy(examples(rng, [0, 1, 2, 3], 500)[0])).numpy()
        for level in small:
            small[level].append((p <= level).mean())
    assert np.mean(small[0.05]) < 0.065 and np.mean(small[0.2]) < 0.22
    assert np.mean(small[0.2]) > 0.1, "p-values that are all large say nothing"


@pytest.mark.parametrize("count, held", [(40, 0), (48, 16), (70, 10)])
def test_p_values_hold_where_examples_are_fewer_than_coordinates(count, held):
    """Distances grow with the number of coordinates, which is that of the folds."""
    rng, small = np.random.default_rng(7), []
    for seed in range(30):
        x, labels = examples(rng, [0, 1, 2, 3], count + held, width=100)
        found = fit_reference(x[:count], labels[:count], x[count:], seed=seed)
        p = found.p_values(torch.from_numpy(examples(rng, [0, 1, 2, 3], 500, width=100)[0]))
        small.append((p <= 0.1).float().mean())
    assert 0.05 < np.mean(small) < 0.125


def test_p_values_of_series_hold_where_groups_are_known():
    """Five shots of each scene: a scene of its own is farther away than another shot."""
    rng, refused = np.random.default_rng(8), {True: [], False: []}
    for seed in range(8):
        scenes, labels = examples(rng, [0, 1, 2, 3], 60)
        shots = np.repeat(scenes, 5, axis=0) + rng.normal(0, 0.1, (300, 24)).astype(np.float32)
        new = torch.from_numpy(examples(rng, [0, 1, 2, 3], 500)[0])
        for grouped in refused:
            groups = (lambda rows: rows // 5) if grouped else None
            found = fit_reference(shots, np.repeat(labels, 5), seed=seed, groups=groups)
            refused[grouped].append((found.p_values(new) <= 0.05).float().mean())
    assert np.mean(refused[True]) < 0.08 < 0.12 < np.mean(refused[False])


def test_a_group_of_most_examples_is_no_fold():
    x, labels = examples(np.random.default_rng(9), [0, 1], 60)
    whole = fit_reference(x, labels, groups=lambda rows: np.minimum(rows // 45, 1))
    assert torch.equal(whole.distances, fit_reference(x, labels).distances)


def test_other_classes_have_small_p_values():
    rng = np.random.default_rng(2)
    x, labels = examples(rng, [0, 1, 2, 3], 200)
    held_out = examples(rng, [0, 1, 2, 3], 100)[0]
    found = fit_reference(x, labels, held_out)
    assert len(found.distances) == 300 and (found.distances.diff() >= 0).all()
    others = found.p_values(torch.from_numpy(examples(rng, [4, 5, 6], 300)[0]))
    assert (others < 0.05).float().mean() > 0.9
    assert others.min() == pytest.approx(1 / 301)


def test_examples_that_were_trained_on_say_nothing_of_distances():
    """Training pulls its own examples together; new ones are farther away and not unknown."""
    rng = np.random.default_rng(3)
    x, labels = examples(rng, [0, 1, 2, 3], 400)
    centers = np.stack([x[labels == label].mean(axis=0) for label in range(4)])
    pulled = centers[labels] + 0.3 * (x - centers[labels])
    held_out, new = (examples(rng, [0, 1, 2, 3], 400)[0] for _ in range(2))
    found = fit_reference(pulled, labels, held_out, trained=True)
    naive = fit_reference(pulled, labels, held_out)
    refused = [
        (each.p_values(torch.from_numpy(new)) <= 0.05).float().mean() for each in (found, naive)
    ]
    assert refused[0] < 0.08 < refused[1]
    assert fit_reference(pulled, labels, held_out[:39], trained=True) is None


def test_too_few_examples_have_none():
    x, labels = examples(np.random.default_rng(3), [0, 1], 39)
    assert fit_reference(x, labels) is None
    assert fit_reference(x, labels, x[:1]) is not None
    assert fit_reference(x[:9], labels[:9], x) is None


def test_large_data_is_bounded():
    x, labels = examples(np.random.default_rng(4), [0, 1, 2], 4500, width=200)
    found = fit_reference(x, labels)
    assert found.centers.shape == (3, 64) and found.basis.shape == (64, 200)
    assert len(found.distances) == 4096


@pytest.fixture(scope="module")
def reference():
    return fit_reference(*examples(np.random.default_rng(6), [0, 1, 2], 60))


def test_a_folder_gives_back_what_was_written(reference, tmp_path):
    assert Reference.read(tmp_path) is None
    reference.write(tmp_path)
    x = torch.from_numpy(examples(np.random.default_rng(7), [0, 5], 20)[0])
    assert torch.equal(Reference.read(tmp_path).p_values(x), reference.p_values(x))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("basis", lambda each: each[:, :-1], "the basis is"),
        ("mean", lambda each: each[None], "mean is torch.float32"),
        ("mean", lambda each: each.double(), "mean is torch.float64"),
        ("centers", lambda each: each * float("nan"), "centers is not finite"),
        ("distances", lambda each: each.flip(0), "distances are not ascending"),
        ("distances", lambda each: each[:0], "distances is torch.float32"),
        ("distances", lambda each: each.repeat(300), "at most 16384"),
        ("other", lambda each: torch.zeros(1), "holds basis, centers, distances, mean, other"),
    ],
)
def test_damage_is_refused(reference, tmp_path, name, damage, message):
    reference.write(tmp_path)
    tensors = load_file(tmp_path / FILE)
    tensors[name] = damage(tensors.get(name)).contiguous()
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ConfigError, match=message):
        Reference.read(tmp_path)


def test_a_trained_head_tells_what_it_has_not_seen(tiny_model, tmp_path, caplog):
    """Train on two classes; the pipeline and the table have the p-value and refuse by it."""
    data = tmp_path / "d"
    make_class_folders(data, {"bird": 30, "cat": 30})
    run = headstart.train(data, model=tiny_model, out=tmp_path / "run", tune="head", device="cpu")
    assert (run.folder / FILE).is_file()
    files = sorted(data.rglob("*.png"))[::7]
    found = pipeline("image-classification", run.folder)(files, top_k=1)
    assert all(0 < each[0]["p_value"] <= 1 for each in found)
    # as if every known example were nearer than any image can be
    tensors = load_file(run.folder / FILE)
    tensors["distances"] = torch.full((99,), -1.0)
    save_file(tensors, run.folder / FILE)
    Confidence(1.0, 99, [Choice(0.05, 0.0, 0.0, 0.0)], 0.05, 0.9).write(run.folder)
    careful = pipeline("image-classification", run.folder, refuse=True)
    answers = [each[0] for each in careful(files)]
    assert {each["label"] for each in answers} == {UNKNOWN}
    assert [each["p_value"] for each in answers] == pytest.approx([0.01] * len(files))
    plain = pipeline("image-classification", run.folder)
    assert not any(each[0]["label"] == UNKNOWN for each in plain(files))

    class Input:
        name = key = "x"

        def pixels(self):
            return np.zeros((40, 40, 3), dtype=np.uint8)

    row = next(classify(careful, [Input()]))
    assert row.refused and row.p_value == pytest.approx(0.01)
    # an engine gives no features
    network = AutoModelForImageClassification.from_pretrained(run.folder)
    headstart.optimize(network, engine="torch").save_pretrained(tmp_path / "fast")
    shutil.copy2(run.folder / FILE, tmp_path / "fast")
    quick = pipeline("image-classification", tmp_path / "fast", refuse=True)
    assert "only the confidence decides" in caplog.text
    assert "p_value" not in quick(files[0])[0]


def test_a_network_that_was_trained_gives_p_values(tiny_model, tmp_path, monkeypatch):
    """From 40 held-out images on."""
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    data = make_class_folders(tmp_path / "d", {"bird": 44, "cat": 44})
    few = {"model": tiny_model, "steps": 2, "batch_size": 8, "resize": 24, "crop": 20}
    found = headstart.train(data, out=tmp_path / "run", val_fraction=0.5, device="cpu", **few)
    assert len(Reference.read(found.folder).distances) == 44
    answer = pipeline("image-classification", found.folder)(str(next((data / "cat").iterdir())))
    assert 0 < answer[0]["p_value"] <= 1
    headstart.train(data, out=tmp_path / "few", val_fraction=0.2, device="cpu", **few)
    assert Reference.read(tmp_path / "few") is None
