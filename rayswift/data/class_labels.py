"""Find the kind of labels of classification rows from the rows, if the config leaves it open."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rayswift.config.model import ProblemType
from rayswift.data.encode.config import EncodeConfig
from rayswift.data.raw_rows import readable
from rayswift.data.rows import BadRow, Label, label_in
from rayswift.data.sequence.windows import RowSet
from rayswift.data.sources import Store
from rayswift.log import UserError, logger

# The kind of labels is found from these; the classes from all rows.
_ROWS_THAT_TELL = 2000
_CHUNK_ROWS = 4096
_MOST_CLASSES = 1000
_SHOWN = 12


@dataclass
class _Seen:
    """Facts about the labels seen; most: the largest whole number; lengths: of labels that are lists."""

    num_rows: int = 0
    names: set[str] = field(default_factory=set)
    most: int = -1
    has_fractions: bool = False
    has_numbers: bool = False
    lengths: set[int] = field(default_factory=set)
    are_marks: bool = True  # every list holds zeros and ones
    repeats: bool = False  # a list holds one number twice, as a list of classes would not

    def add(self, label: Label) -> None:
        self.num_rows += 1
        values = label if isinstance(label, tuple) else (label,)
        numbers = [one for one in values if not isinstance(one, str)]
        self.names.update(one for one in values if isinstance(one, str))
        self.has_numbers |= bool(numbers)
        self.has_fractions |= any(number != int(number) for number in numbers)
        self.most = max([self.most, *(int(number) for number in numbers)])
        if isinstance(label, tuple):
            self.lengths.add(len(values))
            self.are_marks &= all(number in (0, 1) for number in numbers) and len(numbers) == len(values)
            self.repeats |= len(set(values)) < len(values)


def completed(config: EncodeConfig, stores: Sequence[Store]) -> EncodeConfig:
    """The config with `num_labels`, `problem_type` and `label_names` from the training rows, if they are left open."""
    if config.family != "classification":
        return config
    seen = _look(config, stores)
    if not seen.num_rows:
        return config  # the rows are bad, which their encoding reports
    problem_type = config.problem_type or _problem_type(config, seen)
    if seen.names and seen.has_numbers and not config.label_names:
        raise UserError(
            f"labels are numbers in some rows and texts in others, as {_shown(seen.names)}; make them one of these"
        )
    if seen.names and problem_type == "regression":
        raise UserError(f"model.problem_type = regression, and labels are texts, as {_shown(seen.names)}")
    names = config.label_names or tuple(sorted(seen.names))
    num_labels = config.num_labels or len(names) or _num_labels(problem_type, seen)
    if names and num_labels != len(names):
        raise UserError(
            f"model.num_labels = {num_labels}, and the rows have {len(names)} classes: {_shown(names)}; name all with "
            f"model.label_names, in the order of the outputs, or leave both out"
        )
    if problem_type == "single_label_classification" and num_labels == 1:
        raise UserError("all labels are equal, so there is nothing to learn; set model.num_labels if there are others")
    found = replace(config, num_labels=num_labels, problem_type=problem_type, label_names=names)
    if found != config:
        of_a_row = {"regression": "values", "single_label_classification": "one class a row"}
        what = of_a_row.get(problem_type, "several classes a row")
        logger.info("labels: %s, %d outputs%s", what, num_labels, f": {_shown(names)}" if names else "")
    return found


def _look(config: EncodeConfig, stores: Sequence[Store]) -> _Seen:
    seen = _Seen()
    for number, label in enumerate(_labels(config, stores)):
        if number >= _ROWS_THAT_TELL and config.num_labels and (config.label_names or not seen.names):
            break
        seen.add(label)
        if len(seen.names) > _MOST_CLASSES:
            raise UserError(
                f"labels are more than {_MOST_CLASSES} different texts, as {_shown(seen.names)}; if these are classes, "
                f"name them with model.label_names"
            )
    return seen


def _labels(config: EncodeConfig, stores: Sequence[Store]) -> Iterator[Label]:
    rows = RowSet(tuple(stores), seed=0, shuffle=False)
    for begin in range(0, rows.num_rows, _CHUNK_ROWS):
        raw = rows.read(np.arange(begin, min(begin + _CHUNK_ROWS, rows.num_rows)))
        for row, columns in readable(config, raw):
            try:
                yield label_in(row, columns)
            except BadRow:
                continue  # its encoding reports it


def _problem_type(config: EncodeConfig, seen: _Seen) -> ProblemType:
    if seen.lengths and not seen.has_fractions:
        return "multi_label_classification"
    open_ended = seen.has_fractions and config.num_labels is None
    return "regression" if config.num_labels == 1 or open_ended or seen.lengths else "single_label_classification"


def _num_labels(problem_type: ProblemType, seen: _Seen) -> int:
    if problem_type == "regression":
        return max(seen.lengths, default=1)
    marks = problem_type == "multi_label_classification" and seen.are_marks and seen.repeats
    return max(seen.lengths) if marks and len(seen.lengths) == 1 else seen.most + 1


def _shown(names: Sequence[str] | set[str]) -> str:
    listed = list(names) if not isinstance(names, set) else sorted(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(repr(name[:40]) for name in listed[:_SHOWN]) + more
