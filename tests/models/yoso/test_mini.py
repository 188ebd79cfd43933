"""The YOSO that comes with the package."""

import csv

import headstart
from headstart import YosoModel, YosoTokenizer
from headstart.package_data import embedded_folder

GOOD = ("wonderful", "excellent", "charming", "beautiful", "delightful", "superb")
BAD = ("awful", "terrible", "boring", "horrible", "disappointing", "dreadful")


def test_yoso_mini_comes_with_the_package():
    model = YosoModel.from_pretrained("yoso-mini")
    tokenizer = YosoTokenizer.from_pretrained("yoso-mini")
    assert model.config.vocab_size == len(tokenizer) == 12_000
    assert sum(file.stat().st_size for file in embedded_folder("yoso-mini").iterdir()) < 10_000_000


def test_text_classification_starts_from_it(tmp_path):
    """The words of the held-out texts are not among those of training."""
    for name, words in (("train", slice(0, 4)), ("val", slice(4, 6))):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for label, kind in (("good", GOOD), ("bad", BAD)):
                rows.writerows([f"a {word} {what}", label] for word in kind[words]
                               for what in ("film", "story"))  # fmt: skip
    result = headstart.train(
        tmp_path / "train.csv",
        validation=tmp_path / "val.csv",
        out=tmp_path / "run",
        task="text-classification",
    )
    assert result.recipe.tune == "head"  # what its features are made for
    assert result.metrics["accuracy"] >= 0.75
