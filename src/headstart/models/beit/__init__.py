"""BEiT (Bao et al. 2022).

A vision transformer pretrained to predict the visual codes of masked patches.
"""

from headstart.registry import Family

_TORCH, _FLAX, _IMAGE = (
    "headstart.models.beit.torch",
    "headstart.models.beit.flax",
    "headstart.models.beit.image",
)

FAMILY = Family(
    model_type="beit",
    exports={
        "BeitConfig": "headstart.models.beit.config",
        "BeitImageProcessor": _IMAGE,
        "BeitFeatureExtractor": _IMAGE,
        "BeitModel": _TORCH,
        "BeitForMaskedImageModeling": _TORCH,
        "BeitForImageClassification": _TORCH,
        "BeitForSemanticSegmentation": "headstart.models.beit.segmentation",
        "BeitBackbone": "headstart.models.beit.segmentation",
        "BeitPreTrainedModel": _TORCH,
        "DalleImageTokenizer": "headstart.models.beit.image_tokenizer",
        "blockwise_mask": "headstart.models.beit.masking",
        "FlaxBeitModel": _FLAX,
        "FlaxBeitForMaskedImageModeling": _FLAX,
        "FlaxBeitForImageClassification": _FLAX,
        "FlaxBeitPreTrainedModel": _FLAX,
    },
    tasks={
        "base": "BeitModel",
        "backbone": "BeitBackbone",
        "image-classification": "BeitForImageClassification",
        "masked-image-modeling": "BeitForMaskedImageModeling",
        "semantic-segmentation": "BeitForSemanticSegmentation",
    },
    processor="BeitImageProcessor",
    folds="headstart.models.beit.folds:fold",
    zoo="headstart.models.beit.config:PUBLISHED",
    authors="headstart.models.beit.weights:read_authors",
    writers={".pth": "headstart.models.beit.weights:save_pth"},
    recipe="headstart.models.beit.recipe:recipe",
    lora=("query", "key", "value", "attention.output.dense"),
)
