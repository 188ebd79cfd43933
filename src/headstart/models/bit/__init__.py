"""Big Transfer (Kolesnikov et al. 2020): ResNet-v2 with group norm and weight standardization."""

from headstart.registry import Family

_TORCH = "headstart.models.bit.torch"

FAMILY = Family(
    model_type="bit",
    exports={
        "BitConfig": "headstart.models.bit.config",
        "BitImageProcessor": "headstart.models.bit.image",
        "BitModel": _TORCH,
        "BitForImageClassification": _TORCH,
        "BitBackbone": _TORCH,
        "BitPreTrainedModel": _TORCH,
    },
    tasks={
        "base": "BitModel",
        "backbone": "BitBackbone",
        "image-classification": "BitForImageClassification",
    },
    processor="BitImageProcessor",
    folds="headstart.models.bit.folds:fold",
    zoo="headstart.models.bit.config:PUBLISHED",
    authors="headstart.models.bit.weights:read_authors",
    writers={".npz": "headstart.models.bit.weights:save_npz"},
    recipe="headstart.recipe:hyper_rule",
    lora=("conv1", "conv2", "conv3"),
)
