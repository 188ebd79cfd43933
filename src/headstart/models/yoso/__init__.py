"""YOSO (Zeng et al. 2021): a text encoder whose attention is sampled by hashing, in linear time."""

from headstart.registry import Family

_TORCH, _HEADS = "headstart.models.yoso.torch", "headstart.models.yoso.heads"

FAMILY = Family(
    model_type="yoso",
    exports={
        "YosoConfig": "headstart.models.yoso.config",
        "YosoTokenizer": "headstart.models.yoso.tokenizer",
        "YosoModel": _TORCH,
        "YosoForMaskedLM": _HEADS,
        "YosoForSequenceClassification": _HEADS,
        "YosoForMultipleChoice": _HEADS,
        "YosoForTokenClassification": _HEADS,
        "YosoForQuestionAnswering": _HEADS,
        "YosoPreTrainedModel": _TORCH,
        "choose_num_hash": "headstart.models.yoso.attention",
        "measure_num_hash": "headstart.models.yoso.attention",
    },
    tasks={
        "base": "YosoModel",
        "masked-language-modeling": "YosoForMaskedLM",
        "text-classification": "YosoForSequenceClassification",
        "multiple-choice": "YosoForMultipleChoice",
        "token-classification": "YosoForTokenClassification",
        "question-answering": "YosoForQuestionAnswering",
    },
    processor="YosoTokenizer",
    folds="headstart.models.yoso.folds:fold",
    zoo="headstart.models.yoso.config:PUBLISHED",
    authors="headstart.models.yoso.weights:read_authors",
    writers={".pth": "headstart.models.yoso.weights:save_authors"},
    recipe="headstart.recipe:text",
    lora=("query", "key", "value", "attention.output.dense"),
)
