"""The smallest classifier of each family."""

from headstart import (
    BeitConfig,
    BeitForImageClassification,
    BitConfig,
    BitForImageClassification,
    CvtConfig,
    CvtForImageClassification,
    YosoConfig,
    YosoForSequenceClassification,
)

NETWORKS = {
    "bit": lambda: BitForImageClassification(
        BitConfig(
            embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_groups=4, num_labels=3
        )
    ),
    "beit": lambda: BeitForImageClassification(
        BeitConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=16,
        )
    ),
    "cvt": lambda: CvtForImageClassification(
        CvtConfig(embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 1, 2])
    ),
    "yoso": lambda: YosoForSequenceClassification(
        YosoConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    ),
}
