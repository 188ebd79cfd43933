"""Sums of examples: heads after adding and removing against fits to what remains."""

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headstart.errors import ConfigError, FileFormatError
from headstart.features.discriminant import Discriminant, Statistics
from headstart.features.head import Problem, ridge
from headstart.features.memory import FILE, Head, Memory, Sums, one_hot, refit
from headstart.features.portfolio import scaled

V, D = 3, 6


def examples(count=60, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % V
    centers = rng.normal(size=(V, D))
    x = centers[labels] + rng.normal(size=(count, D)) * np.geomspace(0.1, 10, D)
    return (x + 3).astype(np.float32), labels


def memory_of(kind, head, x, labels):
    digests = {"train": [f"{i:064x}" for i in range(len(x))]}
    classes = [f"class {i}" for i in range(V)]
    memory = Memory(kind, classes, [head], "none", digests, {"train": labels})
    return memory.with_sums(x)


def targets(labels, seed=7):
    return np.random.default_rng(seed).normal(size=(len(labels), V)) + one_hot(labels, V)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["discriminant", "ridge"]))
def test_any_order_of_adding_and_removing_is_a_joint_fit(seed, separate, kind):
    """Parts are added and removed in a random order; some come back after they were removed."""
    rng = np.random.default_rng(seed)
    x, classes = examples(90, seed)
    labels = classes if kind == "discriminant" else targets(classes)
    head = Head(kind, 0.3 if kind == "discriminant" else 10.0, separate, D, 0.7)
    present = np.zeros(90, dtype=bool)
    present[:30] = True
    sums = Sums.of(x[:30], labels[:30], V)
    for _ in range(12):
        some = rng.permutation(90)[: rng.integers(1, 30)]
        inside, outside = some[present[some]], some[~present[some]]
        if rng.random() < 0.5 and present.sum() - len(inside) >= 12:
            sums = sums - Sums.of(x[inside], labels[inside], V)
            present[inside] = False
        else:
            sums = sums + Sums.of(x[outside], labels[outside], V)
            present[outside] = True
    assume(kind != "discriminant" or np.bincount(classes[present], minlength=V).min() >= 2)
    joint = Sums.of(x[present], labels[present], V)
    for one, other in zip(sums.solve(head), joint.solve(head), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("separate", [True, False])
def test_a_ridge_of_sums_is_that_of_scikit_learn(separate):
    x, classes = examples()
    y = targets(classes)
    z, mean, scale = scaled(x.astype(np.float64), "all" if separate else "last")
    theirs = ridge(Problem(z, y, V), 5.0)
    weight, bias = Sums.of(x, y, V).solve(Head("ridge", 5.0, separate, D))
    np.testing.assert_allclose(weight, theirs.weight / scale, rtol=1e-6)
    np.testing.assert_allclose(
        x @ weight.T + bias, z @ theirs.weight.T + theirs.bias, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("separate", [True, False])
def test_a_discriminant_of_sums_is_that_of_its_features(separate):
    x, labels = examples()
    z, mean, scale = scaled(x.astype(np.float64), "all" if separate else "last")
    theirs = Discriminant.from_statistics(Statistics.of(z, labels, V), 0.3)
    weight, bias = Sums.of(x, labels, V).solve(Head("discriminant", 0.3, separate, D, 2.0))
    np.testing.assert_allclose(
        x @ weight.T + bias, 2 * (z @ theirs.weight.T + theirs.bias), rtol=1e-6, atol=1e-6
    )


def test_the_order_of_classes_may_change():
    x, labels = examples()
    memory = memory_of("single_label_classification", Head("discriminant", 0.2, True, D), x, labels)
    other = memory.reclassed(["class 2", "new", "class 0", "class 1"])
    more, _ = examples(5, 1)
    grown = other.added({"train": ["f" * 64] * 5}, {"train": np.full(5, 1)}, more)
    weight, bias = grown.sums.solve(grown.heads[0])
    moved = np.append(np.array([2, 3, 0])[labels], np.full(5, 1))
    np.testing.assert_array_equal(grown.labels["train"], moved)
    joint = Sums.of(np.concatenate([x, more]), moved, 4).solve(grown.heads[0])
    np.testing.assert_allclose(weight, joint[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(bias, joint[1], rtol=1e-9, atol=1e-12)


def test_a_class_that_is_left_out_takes_its_examples_along():
    x, labels = examples(9)
    memory = memory_of("single_label_classification", Head("discriminant", 0.2, True, D), x, labels)
    gone = labels == 1
    rest = memory.removed({"train": gone}, x[gone]).reclassed(["class 0", "class 2"])
    assert rest.labels["train"].tolist() == [0, 1, 0, 1, 0, 1] and len(rest.digests["train"]) == 6
    expected = Sums.of(x[~gone], np.array([0, 1] * 3), 2)
    for one, other in zip(rest.sums.parts(), expected.parts(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_heads_without_closed_form_are_fitted_again():
    """An average of two heads, which read all features and the last ones."""
    x, labels = examples()
    heads = [Head("logistic", 1.0, True, D, 0.6), Head("discriminant", 0.3, False, 4, 0.4)]
    memory = Memory(
        "single_label_classification",
        ["a", "b", "c"],
        heads,
        "none",
        {"train": [""] * 60},
        {"train": labels},
    )
    assert not memory.has_closed_form and memory.with_sums(x).sums is None and memory.width == D
    weight, bias = refit(memory, x, None)
    single = [
        refit(dataclasses.replace(memory, heads=[head]), x[:, -head.width :], None)
        for head in heads
    ]
    np.testing.assert_allclose(weight[:, -4:], single[0][0][:, -4:] + single[1][0], rtol=1e-4)
    np.testing.assert_allclose(bias, single[0][1] + single[1][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["single_label_classification", "regression"])
def test_a_memory_is_read_as_it_was_written(kind, tmp_path):
    x, classes = examples()
    labels = classes if kind.startswith("single") else targets(classes)
    head = Head("discriminant" if kind.startswith("single") else "ridge", 0.2, True, D)
    memory = memory_of(kind, head, x, labels)
    memory.write(tmp_path)
    again = Memory.read(tmp_path)
    assert again.digests == memory.digests and again.heads == memory.heads
    assert (again.kind, again.classes, again.class_weights) == (kind, memory.classes, "none")
    np.testing.assert_array_equal(again.labels["train"], labels)
    for one, other in zip(again.sums.parts(), memory.sums.parts(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_without_memory_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="keeps no statistics.*--tune head"):
        Memory.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"train": np.full(60, 3)}},
        {"labels": {"train": np.zeros(59, dtype=np.int64)}},
        {"kind": "regression"},
        {"digests": {}},
        {"heads": []},
    ],
)
def test_a_damaged_memory_is_refused(change, tmp_path):
    x, labels = examples()
    memory = memory_of("single_label_classification", Head("logistic", 1.0, False, D), x, labels)
    dataclasses.replace(memory, **change).write(tmp_path)
    with pytest.raises(FileFormatError, match=FILE):
        Memory.read(tmp_path)


def test_sums_of_another_size_are_refused(tmp_path):
    x, labels = examples()
    memory = memory_of("single_label_classification", Head("discriminant", 0.2, True, D), x, labels)
    wide = dataclasses.replace(memory.heads[0], width=D + 1)
    dataclasses.replace(memory, heads=[wide]).write(tmp_path)
    with pytest.raises(FileFormatError, match="shapes of its sums"):
        Memory.read(tmp_path)
