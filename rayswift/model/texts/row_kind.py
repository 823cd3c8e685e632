"""How the rows of a run are read, by its task."""

from pathlib import Path
from typing import Any

from rayswift.config.checks.distillation import trains_answers
from rayswift.config.derived import max_prompt_length
from rayswift.config.model import SELF
from rayswift.config.schema import RlhfConfig, SftConfig, TrainingConfig
from rayswift.config.tasks import TASKS
from rayswift.data.encode.config import RowKind
from rayswift.model.texts import settings as text_settings


def row_kind(config: TrainingConfig, source: Path) -> RowKind:
    """How the rows of a run are read. source: folder of the model's small files."""
    task = TASKS[config.train.task]
    if task.family == "prompt":
        assert isinstance(config, RlhfConfig)
        rollout = config.rollout
        teacher = config.model.teacher or (rollout.teacher_server and "server") or None
        kwargs: dict[str, Any] = {**rollout.chat_template_kwargs}
        kwargs |= {"tools": rollout.tool_schemas} if rollout.tool_schemas else {}
        return RowKind(
            "prompt",
            max_length=max_prompt_length(config),
            template_kwargs=kwargs,
            max_answer=rollout.max_completion_length if trains_answers(config) else None,
            teacher_prompts=None if teacher is None else "all" if teacher == SELF else "some",
        )
    if task.head == "classes":
        model = config.model
        kind = RowKind(task.family, model.num_labels, model.problem_type, label_names=tuple(model.label_names))
        return text_settings.row_texts(kind, config, source)
    if not isinstance(config, SftConfig):
        return RowKind(task.family)
    train = config.train
    answers = (train.positive_token, train.negative_token) if train.task == "generative_reranker" else None
    kind = RowKind(task.family, loss=train.loss_type or task.default_loss, answers=answers)
    return text_settings.row_texts(kind, config, source)
