"""Files that the tests of the Hub serve."""

from pathlib import Path

import numpy as np

from headstart.checkpoint import read_checkpoint, write_tensors

RNG = np.random.default_rng(0)
# 1,800 bytes each
WEIGHTS = {f"layer.{i}.weight": RNG.standard_normal((9, 50)).astype("float32") for i in range(3)}


def saved(folder: Path, **options) -> dict[str, bytes]:
    """The files of a model as bytes."""
    write_tensors(folder, WEIGHTS, **options)
    (folder / "config.json").write_text('{"model_type": "bit"}')
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_weights(path: Path) -> None:
    tensors = read_checkpoint(path, "numpy")
    assert tensors.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(tensors[name], value)
