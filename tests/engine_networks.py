"""Small networks of every family and head, and inputs for them."""

import torch

import headstart

BIT = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 40, 64],
    "depths": [1, 2, 1, 1],
    "num_groups": 4,
    "num_labels": 5,
}
CVT = {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 4], "depth": [1, 1, 2], "num_labels": 5}
BEIT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "vocab_size": 17,
    "use_relative_position_bias": True,
    "use_mask_token": True,
    "num_labels": 5,
    "layer_scale_init_value": 0.5,
}
SEG = BEIT | {
    "num_hidden_layers": 4,
    "image_size": 64,
    "patch_size": 16,
    "out_indices": [0, 1, 2, 3],
    "pool_scales": [1, 2],
}
YOSO = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 5,
    "max_position_embeddings": 40,
    "hash_code_len": 5,
}


def pixels(side=32, batch=2, seed=0):
    return {
        "pixel_values": torch.randn(
            batch, 3, side, side, generator=torch.Generator().manual_seed(seed)
        )
    }


def tokens(*shape, seed=0):
    ids = torch.randint(5, 61, shape or (2, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[..., -2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


CASES = {
    "BitModel": (BIT, pixels()),
    "BitForImageClassification": (BIT, pixels()),
    "BitBackbone": (BIT | {"out_features": ["stage2", "stage4"]}, pixels()),
    "CvtModel": (CVT, pixels()),
    "CvtForImageClassification": (CVT, pixels()),
    "BeitModel": (BEIT, pixels()),
    "BeitForMaskedImageModeling": (
        BEIT,
        pixels() | {"bool_masked_pos": torch.arange(32).view(2, 16) % 3 == 0},
    ),
    "BeitForImageClassification": (BEIT, pixels()),
    "BeitForSemanticSegmentation": (SEG, pixels(64)),
    "BeitBackbone": (BEIT | {"out_features": ["stage1", "stage3"]}, pixels()),
    "YosoModel": (YOSO, tokens()),
    "YosoForMaskedLM": (YOSO, tokens()),
    "YosoForSequenceClassification": (YOSO, tokens()),
    "YosoForMultipleChoice": (YOSO, tokens(2, 3, 9)),
    "YosoForQuestionAnswering": (YOSO, tokens()),
}


def build(name, seed=0, **values):
    """A network whose every weight says something (no zeros, no ones), in evaluation mode, and
    inputs.
    """
    settings, inputs = CASES[name]
    cls = getattr(headstart, name)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**(settings | values))).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(
                    value.abs() + 0.5
                    if "running_var" in key
                    else value + 0.1 * torch.randn_like(value)
                )
    return model, inputs
