"""The settings that decide the tokens of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayswift.config.model import ProblemType
from rayswift.config.schema import LossOn, LossScale, TruncationMode
from rayswift.config.tasks import Family

TeacherPrompts = Literal["some", "all"] | None


@dataclass(frozen=True)
class EncodeConfig:
    """The settings that decide the tokens of a row; fields not named here are fields of `data`, or of `RowKind`.

    `tokenizer_dir` holds tokenizer.json, its config and the chat template; `tokenizer_hash` is the hash of these files;
    document_prompt: the prompt before a document, from `RowKind.prompts`; template_kwargs: variables for the chat
    template; map, map_hash: the user's function for rows, and the hash of its file; readings: columns and system prompt
    of each source, empty if no source has its own; names: marks in rows -> the text that replaces them, or two texts,
    for Chinese rows and for others.
    """

    tokenizer_dir: str
    tokenizer_hash: str
    max_length: int
    truncation: TruncationMode = "drop"
    loss_on: LossOn = "assistant"
    columns: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    use_chat_template: bool = True
    family: Family = "causal"
    num_labels: int | None = None
    problem_type: ProblemType | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    answers: tuple[str, str] | None = None
    label_names: tuple[str, ...] = ()
    loss_scale: tuple[LossScale, ...] = ()
    ignore_empty_think: bool = False
    keep_history: bool = False
    template_date: str | None = None
    document_prompt: str = ""
    pools_prompt: bool = True
    map: str | None = None
    map_hash: str = ""
    readings: tuple[tuple[Mapping[str, str], str | None], ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_answer: int | None = None
    teacher_prompts: TeacherPrompts = None

    @property
    def num_members(self) -> int | None:
        """Documents in a row of a batch if documents are not packed; None: all documents of a raw row."""
        if self.family in ("embedding", "reranker"):
            return None
        return 2 if self.family == "preference" else 1


@dataclass(frozen=True)
class RowKind:
    """What the task and the model decide about rows.

    family: row family of the task; num_labels, problem_type, label_names: labels of classification rows, with the
    classes in the order of the model's outputs (empty: classes are numbers); max_length, template_kwargs: for prompts
    of a rollout; loss: if it decides which documents a row needs; answers: the two answer tokens of task
    generative_reranker; renders: whether the chat template renders pairs; prompts: the model's default prompts before a
    query and before a document; pools_prompt: whether the prompt's tokens are part of the embedding; lowers: whether
    the tokenizer lower-cases texts; max_answer: most tokens of the answer of a prompt's row, None if
    answers are not trained; teacher_prompts: whether all rows of prompts have another prompt for the teacher, or some
    may, in column `teacher_prompt`.
    """

    family: Family = "causal"
    num_labels: int | None = None
    problem_type: ProblemType | None = None
    max_length: int | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    answers: tuple[str, str] | None = None
    label_names: tuple[str, ...] = ()
    renders: bool = True
    prompts: tuple[str, str] = ("", "")
    pools_prompt: bool = True
    lowers: bool = False
    max_answer: int | None = None
    teacher_prompts: TeacherPrompts = None


CAUSAL = RowKind()
