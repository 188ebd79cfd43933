"""Text tasks: readers, measures, and whole runs of every task on tiny networks."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headstart import YosoConfig, YosoForMaskedLM, YosoTokenizer
from headstart.data.options import DataOptions
from headstart.errors import ConfigError
from headstart.progress import Silent
from headstart.recipe import Recipe
from headstart.tasks.masked_language_modeling import MaskedLanguageModeling
from headstart.tasks.text_classification import TextClassification
from headstart.training.checkpoints import load_checkpoint
from headstart.training.loop import Batches, Loop
from headstart.training.run import train
from headstart.training.world import World
from text_runs import QUICK, WORDS, held_out, run, write


def test_multiple_choice(tiny_yoso, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 80), ("dev", 40)):
        rows = []
        for i in range(count):
            label = int(rng.integers(0, 3))
            choices = [
                str(rng.choice(WORDS["good" if j == label else "bad"])) + " man" * j
                for j in range(3)
            ]
            rows.append((f"we saw {i}", *choices, "ABC"[label]))
        write(
            tmp_path / "data" / f"{name}.tsv",
            rows,
            ("question", "choice0", "choice1", "choice2", "answer"),
        )
    result = run(tmp_path / "data", tiny_yoso, tmp_path / "out", "multiple-choice", steps=80)
    assert result.metrics["accuracy"] > 0.9 and result.metrics["chance"] == pytest.approx(1 / 3)
    figures, rows = held_out(result)
    assert figures["classes"].keys() == {"0", "1", "2"} and len(rows) == 40
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right == np.trace(figures["confusion_matrix"]) == 40 * result.metrics["accuracy"]


def test_masked_language_modeling(tiny_yoso, tmp_path):
    # with the separator 32: the place tells the token
    (tmp_path / "train.txt").write_text("\n".join([" we man" * 15 + " we"] * 60))
    values = QUICK | {"max_length": 34}
    result = train(
        tmp_path / "train.txt",
        model=tiny_yoso,
        out=tmp_path / "out",
        task="masked-language-modeling",
        **values,
    )
    assert result.metrics["accuracy"] > 0.6 and result.metrics["perplexity"] == pytest.approx(
        np.exp(result.metrics["loss"])
    )


def test_masking_is_fifteen_percent_and_80_10_10(tiny_yoso, tmp_path):
    (tmp_path / "a.txt").write_text(
        "\n".join(f"the house was seen by man {i} and we went" for i in range(400))
    )
    task = MaskedLanguageModeling.read(tmp_path / "a.txt", DataOptions(val_fraction=0.0))
    task.build(str(tiny_yoso), Recipe())
    task.prepare(None)
    special, mask = set(task.tokenizer.all_special_ids), task.tokenizer.mask_token_id
    tokens = chosen = masked = same = 0
    for index in range(task.splits["train"]):
        whole = torch.tensor(task.encoded["train"][index]["input_ids"])
        assert len(whole) <= 64
        for draw in range(20):
            example = task.example(index, np.random.default_rng([index, draw]))
            hidden = example["labels"] != -100
            assert torch.equal(example["labels"][hidden], whole[hidden]) and torch.equal(
                example["input_ids"][~hidden], whole[~hidden]
            )
            assert not special & set(whole[hidden].tolist()) and not (special - {mask}) & set(
                example["input_ids"][hidden].tolist()
            )
            tokens += sum(int(t) not in special for t in whole)
            chosen += int(hidden.sum())
            masked += int((example["input_ids"][hidden] == mask).sum())
            same += int((example["input_ids"][hidden] == whole[hidden]).sum())
    assert chosen / tokens == pytest.approx(0.15, abs=0.01)
    assert masked / chosen == pytest.approx(0.8, abs=0.02) and same / chosen == pytest.approx(
        0.1, abs=0.02
    )


STEPS = Recipe(
    optimizer="adamw",
    lr=0.01,
    schedule="constant",
    steps=6,
    batch_size=10,
    micro_batch=10,
    zero_head=False,
    seed=3,
)


def looped(moods, model_folder, folder, recipe, until=None, checkpoint=None, **config):
    task = TextClassification.read(moods, DataOptions())
    torch.manual_seed(1)
    model = task.build(str(model_folder), recipe)
    for module in model.modules():
        if config.get("dropout") == 0 and isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task.prepare(None)
    loop = Loop(task, model, task.recipe, folder, World("cpu"), Silent())
    if checkpoint is not None:
        loop.restore(checkpoint)
    if until is None:
        loop.run()
    else:
        batches = Batches(task, task.recipe, slice(0, 10), 1)
        while loop.step < until:
            loop.update(batches[loop.step])
            loop.step += 1
        loop.save()
        batches.close()
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_micro_batches_of_texts_change_nothing(moods, tiny_yoso, tmp_path):
    """Padding differs between micro-batches of 3, 3, 3, 1 and the whole batch.

    The weights do not.
    """
    whole = looped(moods, tiny_yoso, tmp_path / "a", STEPS, dropout=0)
    parts = looped(
        moods, tiny_yoso, tmp_path / "b", dataclasses.replace(STEPS, micro_batch=3), dropout=0
    )
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_batches_give_what_each_text_gives_alone(moods, tiny_yoso):
    task = TextClassification.read(moods, DataOptions())
    model = task.build(str(tiny_yoso), Recipe(zero_head=False)).eval()
    task.prepare(None)
    together = task.scores(model, "validation", torch.device("cpu"), lambda out: out.logits)
    for row, scores in zip(task.data.splits["validation"], together, strict=True):
        with torch.inference_mode():
            alone = model(**task.tokenizer(row.values["text"], return_tensors="pt")).logits[0]
        np.testing.assert_allclose(scores, alone.numpy(), atol=1e-5)


def test_resumed_run_is_the_same_run(moods, tiny_yoso, tmp_path):
    """With dropout: bit for bit."""
    whole = looped(moods, tiny_yoso, tmp_path / "a", STEPS)
    looped(moods, tiny_yoso, tmp_path / "b", STEPS, until=3)
    resumed = looped(
        moods,
        tiny_yoso,
        tmp_path / "b",
        STEPS,
        checkpoint=load_checkpoint(tmp_path / "b" / "checkpoints"),
    )
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_broken_run_goes_on_bit_for_bit(moods, tiny_yoso, tmp_path, monkeypatch):
    values = {
        "model": str(tiny_yoso),
        "task": "text-classification",
        "device": "cpu",
        "steps": 8,
        "batch_size": 8,
        "checkpoint_every": 3,
    }
    whole = train(moods, out=tmp_path / "whole", eval_every=100, **values)
    update = Loop.update

    def power_cut(self, batch):
        if self.step == 7:
            raise RuntimeError("power cut")
        return update(self, batch)

    monkeypatch.setattr(Loop, "update", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(moods, out=tmp_path / "broken", eval_every=100, **values)
    monkeypatch.setattr(Loop, "update", update)
    torch.manual_seed(99)
    resumed = train(moods, out=tmp_path / "broken", resume=True)
    assert resumed.metrics == whole.metrics
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_tokenizer_of_another_network(moods, tiny_yoso, tmp_path):
    task = TextClassification.read(moods, DataOptions())
    config = YosoConfig(
        vocab_size=90,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    YosoForMaskedLM(config).save_pretrained(tmp_path)
    YosoTokenizer.from_pretrained(tiny_yoso).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer has 700 tokens and the network 90"):
        task.build(str(tmp_path), Recipe())


def test_texts_are_tokenized_once_and_in_parts(tiny_yoso, tmp_path, monkeypatch):
    """Only texts that are too long are given to the tokenizer again; progress counts them."""
    monkeypatch.setattr("headstart.tasks.text.TOKENIZED_TOGETHER", 4)
    lines = [f"{'so ' * (30 if i == 5 else 2)}w{i},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *lines]))
    task = TextClassification.read(tmp_path / "t.csv", DataOptions(val_fraction=0.0))
    task.build(tiny_yoso, Recipe(max_length=16))
    seen, counts, tokens = [], [], task.tokens

    def counted(texts, *more, **options):
        seen.append(len(texts))
        return tokens(texts, *more, **options)

    monkeypatch.setattr(task, "tokens", counted)
    encoded = task.encode("train")
    assert sorted(seen) == [1, 4, 4, 4, 4, 4]
    assert [each["cut"] for each in encoded] == [i == 5 for i in range(20)]
    assert len(encoded[5]["input_ids"]) == 16
    task.tokenized = counts.append
    task.encode("train")
    assert counts == [4] * 5
