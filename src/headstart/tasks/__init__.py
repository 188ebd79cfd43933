"""Tasks by name, loaded when they are first used."""

import difflib

from headstart.errors import ConfigError
from headstart.registry import locate
from headstart.tasks.base import Evaluation, HeadTask, Task, can_fit_head

TASKS: dict[str, str] = {
    "image-classification": "headstart.tasks.image_classification:ImageClassification",
    "text-classification": "headstart.tasks.text_classification:TextClassification",
    "token-classification": "headstart.tasks.token_classification:TokenClassification",
    "question-answering": "headstart.tasks.question_answering:QuestionAnswering",
    "multiple-choice": "headstart.tasks.multiple_choice:MultipleChoice",
    "masked-language-modeling": "headstart.tasks.masked_language_modeling:MaskedLanguageModeling",
    "semantic-segmentation": "headstart.tasks.semantic_segmentation:SemanticSegmentation",
    "masked-image-modeling": "headstart.tasks.masked_image_modeling:MaskedImageModeling",
    "distillation": "headstart.training.distill:Distillation",
    "text-distillation": "headstart.training.distill_texts:TextDistillation",
}

__all__ = ["TASKS", "Evaluation", "HeadTask", "Task", "can_fit_head", "task_class"]


def task_class(name: str) -> type[Task]:
    """The class of the task of that name.

    Raises:
        ConfigError: There is no such task.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=3) or list(TASKS)
        raise ConfigError(f"no task is called {name!r}; did you mean {' or '.join(near)}?")
    found: type[Task] = locate(TASKS[name])
    return found
