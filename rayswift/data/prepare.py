"""What the driver makes ready before data tasks start: open sources, windows, a look at the first rows."""

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayswift.config.fields.source import SourceConfig
from rayswift.config.schema import DataConfig
from rayswift.data import class_labels
from rayswift.data.cache.folder import known, open_cache
from rayswift.data.encode.config import CAUSAL, EncodeConfig, RowKind
from rayswift.data.raw_rows import encode_raw, map_hash, placed, readable
from rayswift.data.rows import BadRow, kto_remarks
from rayswift.data.sequence.mixing import Mix, mix, weights_of
from rayswift.data.sequence.windows import RowSet, WindowPlan, Windows
from rayswift.data.sources import Store, hold_out, open_sources, parse_source
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.training_copy import hash_files
from rayswift.log import UserError, logger

_PROBED_ROWS = 64
_LOST_FROM = 0.1  # of the rows, from which on it is said
_COSTS_FROM = 1.2
_REMARKED_ROWS = 1000
_PACKED_ROWS_OF_A_WINDOW = 200
_LEAST_ROWS, _MOST_ROWS = 2000, 50_000
# What a data task holds at a time, whatever the rows' size.
_MOST_TOKENS, _MOST_BYTES = 1 << 24, 1 << 28


def with_template_date(data: DataConfig, tokenizer_dir: Path, before: Mapping[str, Any] | None = None) -> DataConfig:
    """Section `data` with the day frozen that a chat template sees which asks for it.

    Args:
        data: As the user set it.
        tokenizer_dir: Where the template is.
        before: The resolved section of what is continued: it keeps its day, as encoded rows keep theirs.
    """
    source, _ = read_chat_template(tokenizer_dir)
    if data.template_date or "strftime_now" not in (source or ""):
        return data
    encoded = known(Path(data.cache)) if data.cache else None
    day = encoded.settings.get("data.template_date") if encoded else (before or {}).get("template_date")
    return data.model_copy(update={"template_date": day or datetime.date.today().isoformat()})


def plan_windows(
    data: DataConfig, tokenizer_dir: Path, seed: int, work_dir: Path, kind: RowKind = CAUSAL
) -> tuple[Windows, Windows | None]:
    """The training windows, and the evaluation windows if there are evaluation rows: cached, or to be encoded.

    Raises:
        UserError: a source cannot be read, none of the first rows can be trained, or the cache is of something else.
    """
    if data.cache:
        return open_cache(data, tokenizer_dir, hash_files(tokenizer_dir), seed, kind)
    return plan_encoding(data, tokenizer_dir, seed, work_dir, kind)


def plan_encoding(
    data: DataConfig, tokenizer_dir: Path, seed: int, work_dir: Path, kind: RowKind = CAUSAL
) -> tuple[WindowPlan, WindowPlan | None]:
    """Open all sources: the training windows, and the evaluation windows if there are evaluation rows.

    Raises:
        UserError: a source cannot be read, or none of the first rows can be trained.
    """
    # Rewards are told every column, and a function may read any.
    columns = None if kind.family == "prompt" or data.map else data.columns
    stores = open_sources(data.dataset, work_dir / "train", seed, shuffle=data.shuffle, columns=columns)
    encode = EncodeConfig(
        str(tokenizer_dir),
        hash_files(tokenizer_dir),
        kind.max_length or data.max_length,
        data.truncation,
        data.loss_on,
        dict(data.columns),
        _system(data.system, kind),
        data.use_chat_template,
        kind.family,
        kind.num_labels,
        kind.problem_type,
        {**data.chat_template_kwargs, **kind.template_kwargs},
        kind.loss,
        kind.answers,
        kind.label_names,
        tuple(data.loss_scale),
        data.ignore_empty_think,
        data.keep_history,
        data.template_date,
        kind.prompts[1],
        kind.pools_prompt,
        placed(data.map) if data.map else None,
        map_hash(data.map) if data.map else "",
        _readings(data, data.dataset, kind),
        names=_names(data),
        max_answer=kind.max_answer,
        teacher_prompts=kind.teacher_prompts,
    )
    encode = class_labels.completed(encode, stores)
    held_out: tuple[Store, ...] = ()
    if data.eval:
        held_out = open_sources(
            data.eval, work_dir / "eval", seed, held_out=True, shuffle=data.shuffle, columns=columns
        )
    elif data.eval_fraction:
        stores, held_out = _hold_out(data, stores, seed)
    rows = RowSet(stores, seed, data.shuffle, _mix(data, stores))
    seen = probe(rows, encode)
    _remark(rows, encode)
    window_rows = data.window_rows or derived_window_rows(encode.max_length, seen.mean_length, seen.mean_bytes)
    train = WindowPlan(rows, encode, data.packing, window_rows)
    if not held_out:
        return train, None
    evaluation = RowSet(held_out, seed, shuffle=False)
    encode = replace(encode, readings=_readings(data, data.eval, kind)) if data.eval else encode
    probe(evaluation, encode, "evaluation rows can be used")
    return train, replace(train, row_set=evaluation, encode=encode)


def _names(data: DataConfig) -> dict[str, Any]:
    """What marks in rows stand for, where it is given."""
    named = {"{{NAME}}": data.model_name, "{{AUTHOR}}": data.model_author}
    return {mark: given for mark, given in named.items() if given}


def _system(given: str | None, kind: RowKind) -> str | None:
    """The system prompt of rows that bring none: the config's, or what the model's folder has before a query."""
    return (kind.prompts[0] or None) if given is None else given


def _readings(
    data: DataConfig, given: Sequence[str | SourceConfig], kind: RowKind
) -> tuple[tuple[Mapping[str, str], str | None], ...]:
    """Columns and system prompt of each source; none if no source has its own."""
    sources = [parse_source(each) for each in given]
    if all(source.columns is None and source.system is None for source in sources):
        return ()
    return tuple(
        (
            dict(data.columns if source.columns is None else source.columns),
            _system(data.system if source.system is None else source.system, kind),
        )
        for source in sources
    )


def _remark(rows: RowSet, encode: EncodeConfig) -> None:
    """Say what the first rows show and no error tells."""
    if encode.family == "kto":
        first = rows.read(rows.rows_at(0, _REMARKED_ROWS, 0))
        for line in kto_remarks(readable(encode, first)):
            logger.warning("data.dataset: %s", line)


def derived_window_rows(max_length: int, mean_length: float, mean_bytes: float = 0.0) -> int:
    """Rows of a window whose last, partly filled packed row costs little: so many that about 200 are packed.

    Fewer where rows are so long that a data task would hold too much.

    Args:
        max_length: Tokens of a packed row.
        mean_length: Tokens of a row that are kept, in all of its documents.
        mean_bytes: Bytes of a row before it is encoded.
    """
    rows = min(max(_PACKED_ROWS_OF_A_WINDOW * max_length / mean_length, _LEAST_ROWS), _MOST_ROWS)
    return max(1, round(min(rows, _MOST_TOKENS / mean_length, _MOST_BYTES / max(mean_bytes, 1.0))))


def _hold_out(data: DataConfig, stores: tuple[Store, ...], seed: int) -> tuple[tuple[Store, ...], tuple[Store, ...]]:
    train, held_out = hold_out(stores, data.eval_fraction, seed, data.shuffle)
    num_train, num_held_out = (sum(store.num_rows for store in part) for part in (train, held_out))
    if not num_train or not num_held_out:
        raise UserError(
            f"data.eval_fraction = {data.eval_fraction} of {num_train + num_held_out} rows leaves "
            f"{num_train} to train and {num_held_out} to evaluate"
        )
    return train, held_out


def _mix(data: DataConfig, stores: tuple[Store, ...]) -> Mix | None:
    weights = weights_of(data.dataset, data.mix)
    if weights is None:
        return None
    sources = [parse_source(each).written for each in data.dataset]
    empty = [source for source, store in zip(sources, stores, strict=True) if not store.num_rows]
    if empty:
        raise UserError(f"data.mix: data.eval_fraction leaves no row of {', '.join(empty)} to train")
    mixed = mix([store.num_rows for store in stores], weights, data.mix_until)
    for source, store, draws in zip(sources, stores, mixed.draws, strict=True):
        logger.info("mix: an epoch draws %d of the %d rows of %s", draws, store.num_rows, source)
    return mixed


@dataclass(frozen=True)
class Probed:
    """The first rows of an epoch: mean tokens of those that can be trained, mean bytes of those that can be read."""

    mean_length: float
    mean_bytes: float


def probe(rows: RowSet, encode: EncodeConfig, wanted: str = "rows can be trained") -> Probed:
    """Encode the first rows of an epoch here, so that data that cannot work at all is refused at once.

    Args:
        rows: Which.
        encode: How.
        wanted: What the message says none of them can be.

    Raises:
        UserError: not one of them can be trained; it says why.
    """
    raw = rows.read(rows.rows_at(0, _PROBED_ROWS, 0))
    bad: list[BadRow] = []
    made: list[list[int]] = []
    for _, result in (one for each in encode_raw(encode, raw) for one in each):
        if isinstance(result, BadRow):
            bad.append(result)
        else:
            made.append([len(document.input_ids) for document in result])
    if made:
        _say_what_is_lost(bad, len(bad) + len(made))
        if encode.family == "causal" and encode.truncation != "split":
            _say_what_history_costs(made)
        texts = [row.text or json.dumps(row.value, ensure_ascii=False, default=str) for row in raw if row.error is None]
        return Probed(sum(map(sum, made)) / len(made), sum(map(len, texts)) / len(texts))
    reasons = Counter(result.reason for result in bad)
    examples = {result.reason: result.detail for result in bad}
    raise UserError(
        f"none of the first {len(bad)} {wanted}:\n"
        + "\n".join(f"  {count} x {reason}: {examples[reason]}" for reason, count in reasons.most_common())
    )


def _say_what_is_lost(bad: Sequence[BadRow], num_rows: int) -> None:
    if len(bad) < _LOST_FROM * num_rows:
        return
    reasons = Counter(result.reason for result in bad).most_common()
    logger.warning(
        "of the first %d rows %d cannot be used: %s",
        num_rows,
        len(bad),
        "; ".join(f"{n} {name}" for name, n in reasons),
    )


def _say_what_history_costs(made: Sequence[Sequence[int]]) -> None:
    """Rows that are several texts, because the chat template rewrites what was said before."""
    once = sum(max(row) for row in made)
    total = sum(map(sum, made))
    if total >= _COSTS_FROM * once:
        logger.warning(
            "the chat template rewrites earlier answers: the first %d rows make %d texts of %d tokens, %.1f times the "
            "last texts alone; data.keep_history true trains each row as one text, earlier answers as they stand there",
            len(made),
            sum(map(len, made)),
            total,
            total / once,
        )
