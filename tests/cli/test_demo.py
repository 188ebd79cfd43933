"""The demo, with a few steps in place of its sixty."""

import pytest

from headstart.cli import demo


@pytest.mark.parametrize("digits", [False, True])
def test_demo(monkeypatch, tmp_path, digits):
    monkeypatch.setattr(demo, "RECIPE", demo.RECIPE | {"steps": 12, "eval_every": 12})
    (tmp_path / "demo").mkdir()
    lines = []
    found = demo.demo(tmp_path / "demo", draws=1, digits=digits, report=lines.append)
    assert (tmp_path / "demo-2" / "report.html").is_file()  # the folder that existed is kept
    assert not list((tmp_path / "demo").iterdir())
    assert found["pretrained"][0] > found["random"][0] > 0.05
    assert any(f"{found['pretrained'][0]:.1%}" in line for line in lines)
    answers = [line.split()[0] for line in lines if "predicted" in line]
    assert answers == (["1", "3", "7", "8"] if digits else list(demo.EXAMPLES))


def test_draws_differ_and_share_no_image(tmp_path):
    """Ten images of each class to train, the ten others to evaluate; another draw, another ten."""
    parts = {}
    for seed in (0, 1):
        demo.write_photos(tmp_path / str(seed), seed)
        for split in ("train", "val"):
            files = list((tmp_path / str(seed) / split).rglob("*.jpg"))
            parts[seed, split] = {file.read_bytes() for file in files}
            assert len(parts[seed, split]) == 100
        assert not parts[seed, "train"] & parts[seed, "val"]
    assert parts[0, "train"] != parts[1, "train"]
