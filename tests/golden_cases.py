"""Runs a case of `golden/transformers` through our class of the same name and compares every output
and gradient.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import headstart
from conftest import assert_close, golden_dir, read_json


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Named tensors of an output, tuple parts as `name.N`."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, tuple | list):
        return {
            k: v
            for i, each in enumerate(value)
            for k, v in flatten(each, f"{name}.{i}" if name else str(i)).items()
        }
    return {
        k: v
        for key, each in value.items()
        for k, v in flatten(each, f"{name}.{key}" if name else key).items()
    }


def load_case(family: str, case: str) -> tuple[Path, dict[str, Any], Any, dict[str, torch.Tensor]]:
    """Folder, meta.json, our model with the case's weights, and its inputs."""
    folder = golden_dir("transformers", family, case)
    meta = read_json(folder / "meta.json")
    model = getattr(headstart, meta["class"]).from_pretrained(folder, compat="transformers")
    model.train(meta["mode"] == "train")
    return folder, meta, model, load_file(folder / "inputs.safetensors")


def tolerance(meta: dict[str, Any], name: str, base: float) -> float:
    """The allowed difference as a fraction of max(1, max |b|).

    The base, or a few times the oracle's own rounding where that is more.
    """
    noise = meta.get("noise", {}).get(name)
    return (
        base
        if noise is None
        else max(base, 5 * noise["fp32_vs_fp64_max_abs_diff"] / max(1.0, noise["max_abs"]))
    )


def check_case(
    family: str, case: str, base: float = 1e-5, skip: tuple[str, ...] = (), tuples: bool = True
) -> None:
    """Compares outputs, gradients, buffers and (if `tuples`) the tuple form.

    `skip` holds beginnings of output names that are not compared.
    """
    folder, meta, model, inputs = load_case(family, case)
    expected = load_file(folder / "outputs.safetensors")
    buffers = {
        k.removeprefix("buffer_after."): expected.pop(k)
        for k in list(expected)
        if k.startswith("buffer_after.")
    }
    grads = (
        load_file(folder / "grads.safetensors") if (folder / "grads.safetensors").exists() else {}
    )
    out = model(**inputs, **meta["call"])
    ours = flatten(out)
    wanted = {k: v for k, v in expected.items() if not k.startswith(skip or ("\0",))}
    assert set(wanted) <= set(ours), f"missing outputs: {sorted(set(wanted) - set(ours))}"
    for name, value in wanted.items():
        assert_close(ours[name], value, tolerance(meta, name, base), f"{case} {name}")
    if grads:
        out.loss.backward()
        table = model.name_table(model.config)
        gradients = {
            n: p.grad if p.grad is not None else torch.zeros_like(p)
            for n, p in model.named_parameters()
        }
        published = table.to_theirs(gradients)
        for name, value in grads.items():
            limit = 1e-4 * max(1e-3, float(value.abs().max()))
            worst = float((published[name] - value).abs().max())
            assert worst <= limit, (
                f"{case} gradient of {name}: differs by {worst:.3g}, allowed {limit:.3g}"
            )
    for name, value in buffers.items():
        state = model.name_table(model.config).to_theirs(model.state_dict())
        assert_close(state[name].float(), value.float(), 1e-5, f"{case} buffer {name}")
    tuples = tuples and "return_dict_false" in meta and meta["mode"] == "eval"
    plain = model(**inputs, **meta["call"], return_dict=False) if tuples else None
    if plain is not None:
        assert shape_of(plain) == shape_of(meta["return_dict_false"], expected), (
            f"{case}: the tuple is laid out otherwise"
        )


def shape_of(value: Any, names: dict[str, torch.Tensor] | None = None) -> Any:
    """Nested shapes of a tuple output, or of the names that describe one."""
    if isinstance(value, str):
        assert names is not None
        return tuple(names[value].shape)
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return [shape_of(each, names) for each in value]
