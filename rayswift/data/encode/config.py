"""What determines the tokens of a row, and what rows are read as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayswift.config.model import ProblemType
from rayswift.config.schema import LossOn, LossScale, TruncationMode
from rayswift.config.tasks import Family

TeacherPrompts = Literal["some", "all"] | None


@dataclass(frozen=True)
class EncodeConfig:
    """What determines the tokens of a row.

    `tokenizer_dir` holds tokenizer.json, its config and the chat template; `tokenizer_hash` is the hash of those files.
    family to label_names, document_prompt, pools_prompt, max_answer, teacher_prompts: see `RowKind`, whose prompt of a
    query is `system`; template_kwargs: variables for the chat template; map, map_hash: the user's own function for
    rows, and the hash of its file; readings: of each source the columns and the system prompt that take the place of
    those here, none: no source has its own; names: what marks in rows stand for, a word, or one in Chinese rows and
    another. The others are fields of `data`.
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
        """Documents that make a row of a batch where documents are not packed; None: all that a raw row has."""
        if self.family in ("embedding", "reranker"):
            return None
        return 2 if self.family == "preference" else 1


@dataclass(frozen=True)
class RowKind:
    """What rows are read as: their family, and what the labels of classified ones are.

    max_length, template_kwargs: of prompts, for which neither `data.max_length` nor the row's own variables for the
    chat template say all. loss: where it asks for certain members of a row. answers: what texts of task
    generative_reranker ask for. label_names: of classes, in the order of the model's outputs; empty: they are numbers.
    renders: whether pairs are rendered by the chat template. prompts: what the model's folder has before a query, where
    the row and `data.system` have nothing, and before a document. pools_prompt: whether the prompt's tokens are part of
    the embedding. lowers: whether the tokenizer is to lower-case texts. max_answer: tokens of the longest answer of a
    prompt's row that is trained; None: answers are not. teacher_prompts: whether all rows of prompts have another
    prompt for the teacher, or some may, in column `teacher_prompt`.
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
