"""Small Keras networks on the backend of this process."""

import keras
import numpy as np
import torch
from keras import ops

from headstart import (
    CvtConfig,
    CvtForImageClassification,
    CvtModel,
    TFCvtForImageClassification,
    TFCvtModel,
)
from headstart.models.cvt.config import PER_STAGE
from headstart.nn.keras import named_variables

BACKEND = keras.backend.backend()
CLASSES = {"CvtModel": TFCvtModel, "CvtForImageClassification": TFCvtForImageClassification}
WIDTHS = {"embed_dim": [8, 12, 16], "num_heads": [1, 3, 2], "depth": [1, 1, 2]}


def small(count=2, **values):
    """A small configuration of so many stages, the last ones of three."""
    lists = {name: getattr(CvtConfig(), name)[-count:] for name in PER_STAGE} | {
        name: each[-count:] for name, each in WIDTHS.items()
    }
    return CvtConfig(
        **(
            lists
            | {"num_labels": 3, "layer_norm_eps": 1e-5, "patch_stride": [4, 2, 2][:count]}
            | values
        )
    )


def pixels(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pair(tmp_path, cls="CvtForImageClassification", **values):
    """A PyTorch network with trained-looking norms and statistics, and the Keras one with its
    weights.
    """
    torch.manual_seed(0)
    theirs = {"CvtModel": CvtModel, "CvtForImageClassification": CvtForImageClassification}[cls](
        small(**values)
    ).eval()
    with torch.no_grad():
        for tensor in [*theirs.parameters(), *theirs.buffers()]:
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                tensor.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    return theirs, CLASSES[cls].from_pretrained(tmp_path)


COMPILED = {}


def run(model, x, **flags):
    """A call; compiled as a whole on JAX, where compiling each operation alone takes minutes."""
    if BACKEND != "jax":
        return model(x, **flags)
    import jax

    state = [
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    ]
    plain = all(isinstance(value, bool) for value in flags.values())
    key = (id(model), *sorted(flags.items())) if plain else object()
    if key not in COMPILED:  # with the model, so that no other gets its id
        COMPILED[key] = model, jax.jit(lambda a, b, x: model.stateless_call(a, b, x, **flags))
    out, still = COMPILED[key][1](*state, x)
    for variable, value in zip(model.non_trainable_variables, still, strict=True):
        variable.assign(value)
    return out


def gradients(model, x, labels, training=False):
    """Our name → gradient of the loss in PyTorch's layout."""
    table = [
        (key, variable, axes)
        for key, variable, axes in named_variables(model)
        if variable.trainable
    ]
    variables = [variable for _, variable, _ in table]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = model(x, labels=labels, training=training).loss
        values = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
    elif BACKEND == "jax":
        import jax

        still = [v.value for v in model.non_trainable_variables]
        order = model.trainable_variables

        def loss_of(values):
            return model.stateless_call(values, still, x, labels=labels, training=training)[0].loss

        found = dict(
            zip(
                (id(v) for v in order),
                jax.jit(jax.grad(loss_of))([v.value for v in order]),
                strict=True,
            )
        )
        values = [found[id(v)] for v in variables]
    else:
        model.zero_grad()
        model(x, labels=labels, training=training).loss.backward()
        values = [
            torch.zeros_like(v.value) if v.value.grad is None else v.value.grad for v in variables
        ]
    out = {}
    for (key, _, axes), value in zip(table, values, strict=True):
        value = np.asarray(ops.convert_to_numpy(value))
        out[key] = value if axes is None else np.transpose(value, np.argsort(axes))
    return out
