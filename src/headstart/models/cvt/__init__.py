"""CvT (Wu et al. 2021): a vision transformer whose tokens and projections are convolutions."""

from headstart.registry import Family

_TORCH, _KERAS, _IMAGE = (
    "headstart.models.cvt.torch",
    "headstart.models.cvt.keras",
    "headstart.models.cvt.image",
)

FAMILY = Family(
    model_type="cvt",
    exports={
        "CvtConfig": "headstart.models.cvt.config",
        "ConvNextImageProcessor": _IMAGE,
        "ConvNextFeatureExtractor": _IMAGE,
        "CvtModel": _TORCH,
        "CvtForImageClassification": _TORCH,
        "CvtBackbone": _TORCH,
        "CvtPreTrainedModel": _TORCH,
        "TFCvtModel": _KERAS,
        "TFCvtForImageClassification": _KERAS,
        "KerasCvtModel": _KERAS,
        "KerasCvtForImageClassification": _KERAS,
    },
    tasks={
        "base": "CvtModel",
        "backbone": "CvtBackbone",
        "image-classification": "CvtForImageClassification",
    },
    processor="ConvNextImageProcessor",
    folds="headstart.models.cvt.folds:fold",
    zoo="headstart.models.cvt.config:PUBLISHED",
    authors="headstart.models.cvt.weights:read_authors",
    writers={".pth": "headstart.models.cvt.weights:save_pth"},
    recipe="headstart.models.cvt.recipe:recipe",
    lora=("projection_query", "projection_key", "projection_value", "attention.output.dense"),
)
