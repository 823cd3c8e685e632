"""What the driver prepares before data tasks start: sources, windows, and a check of the first rows."""

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayswift.config.fields.source import SourceConfig
from rayswift.config.schema import DataConfig
from rayswift.data import class_labels
from rayswift.data.cache.folder import known, open_cache
from rayswift.data.encode.config import CAUSAL, EncodeConfig, RowKind
from rayswift.data.raw_rows import encode_raw, map_hash, placed, readable
from rayswift.data.rows import BadRow, absent_names, kto_remarks, media_marks, unused_columns
from rayswift.data.sequence.mixing import Mix, mix, weights_of
from rayswift.data.sequence.windows import RowSet, WindowPlan, Windows
from rayswift.data.sources import Store, hold_out, open_sources, parse_source
from rayswift.data.tokenizer.folder import read_chat_template
from rayswift.data.tokenizer.training_copy import hash_files
from rayswift.log import UserError, logger

_PROBED_ROWS = 64
_MOST_SHOWN = 400  # characters of a list of columns
_WARN_LOST_FRACTION = 0.1  # of the first rows
_WARN_REWRITTEN_RATIO = 1.2  # tokens of all texts to those of the last texts
_REMARKED_ROWS = 1000
_NAMED_ROWS = 200  # of each source
_PACKED_ROWS_OF_A_WINDOW = 200
_LEAST_ROWS, _MOST_ROWS = 2000, 50_000
# The most that a data task holds at a time.
_MOST_TOKENS, _MOST_BYTES = 1 << 24, 1 << 28


def with_template_date(data: DataConfig, tokenizer_dir: Path, before: Mapping[str, Any] | None = None) -> DataConfig:
    """Section `data` with `template_date` set if the chat template asks for the day.

    A continued run keeps the day of `before`, its resolved section, and a run with a cache that of the cache.
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
    """The training windows, and the evaluation windows if there are evaluation rows, from the cache or the sources."""
    if data.cache:
        return open_cache(data, tokenizer_dir, hash_files(tokenizer_dir), seed, kind)
    return plan_encoding(data, tokenizer_dir, seed, work_dir, kind)


def plan_encoding(
    data: DataConfig, tokenizer_dir: Path, seed: int, work_dir: Path, kind: RowKind = CAUSAL
) -> tuple[WindowPlan, WindowPlan | None]:
    """Open all sources: the training windows, and the evaluation windows if there are evaluation rows."""
    # Rewards receive every column, and `data.map` may read any.
    columns = None if kind.family == "prompt" or data.map else data.columns
    stores = open_sources(data.dataset, work_dir / "train", seed, shuffle=data.shuffle, columns=columns)
    names = {"{{NAME}}": data.model_name, "{{AUTHOR}}": data.model_author}
    encode = EncodeConfig(
        tokenizer_dir=str(tokenizer_dir),
        tokenizer_hash=hash_files(tokenizer_dir),
        max_length=kind.max_length or data.max_length,
        truncation=data.truncation,
        loss_on=data.loss_on,
        columns=dict(data.columns),
        system=_system(data.system, kind),
        use_chat_template=data.use_chat_template,
        family=kind.family,
        num_labels=kind.num_labels,
        problem_type=kind.problem_type,
        template_kwargs={**data.chat_template_kwargs, **kind.template_kwargs},
        loss=kind.loss,
        answers=kind.answers,
        label_names=kind.label_names,
        loss_scale=tuple(data.loss_scale),
        ignore_empty_think=data.ignore_empty_think,
        keep_history=data.keep_history,
        template_date=data.template_date,
        document_prompt=kind.prompts[1],
        pools_prompt=kind.pools_prompt,
        map=placed(data.map) if data.map else None,
        map_hash=map_hash(data.map) if data.map else "",
        readings=_readings(data, data.dataset, kind),
        names={mark: given for mark, given in names.items() if given},
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
    evaluation = RowSet(held_out, seed, shuffle=False)
    encode_held_out = replace(encode, readings=_readings(data, data.eval, kind)) if data.eval else encode
    _warn_of_absent_names([(rows, encode), (evaluation, encode_held_out)])
    mean_length, mean_bytes = _probe(rows, encode)
    _remark(rows, encode)
    window_rows = data.window_rows or derived_window_rows(encode.max_length, mean_length, mean_bytes)
    train = WindowPlan(rows, encode, data.packing, window_rows)
    if not held_out:
        return train, None
    _probe(evaluation, encode_held_out, "evaluation rows can be used")
    return train, replace(train, row_set=evaluation, encode=encode_held_out)


def _warn_of_absent_names(sets: Sequence[tuple[RowSet, EncodeConfig]]) -> None:
    """Warn of names in `data.columns` that the first rows of each source do not have."""
    looked_at = []
    for rows, encode in sets:
        if not (encode.columns or encode.readings):
            continue
        starts = np.cumsum([0, *(store.num_rows for store in rows.stores)])[:-1]
        firsts = [start + np.arange(min(s.num_rows, _NAMED_ROWS)) for start, s in zip(starts, rows.stores, strict=True)]
        looked_at += list(readable(encode, rows.read(np.concatenate(firsts)))) if firsts else []
    absent = absent_names(looked_at)
    if absent:
        has = sorted({str(name) for row, _ in looked_at if isinstance(row, Mapping) for name in row})
        logger.warning(
            "data.columns: none of the first %d rows has %s; their columns are %s",
            len(looked_at),
            ", ".join(absent),
            ", ".join(has)[:_MOST_SHOWN],
        )


def _remark(rows: RowSet, encode: EncodeConfig) -> None:
    """Log what the first rows of an epoch show about their columns and labels."""
    probed = list(readable(encode, rows.read(rows.rows_at(0, _PROBED_ROWS, 0))))
    unused = unused_columns(probed, encode.family)
    if unused:
        shown = ", ".join(unused)[:_MOST_SHOWN]
        logger.info("data.dataset: columns without effect: %s; data.columns maps yours", shown)
    for mark, count in media_marks(probed, encode.family).items():
        logger.warning(
            "data.dataset: %d of the first %d rows have %s in their texts: it is read as text, because models are text "
            "only; leave such rows out with data.map if it stands for a file",
            count,
            len(probed),
            mark,
        )
    if encode.family == "kto":
        for line in kto_remarks(readable(encode, rows.read(rows.rows_at(0, _REMARKED_ROWS, 0)))):
            logger.warning("data.dataset: %s", line)


def _system(given: str | None, kind: RowKind) -> str | None:
    """The system prompt for a row without one: the config's, or else the model's default prompt of a query."""
    return (kind.prompts[0] or None) if given is None else given


def _readings(
    data: DataConfig, given: Sequence[str | SourceConfig], kind: RowKind
) -> tuple[tuple[Mapping[str, str], str | None], ...]:
    """Columns and system prompt of each source; empty if no source has its own."""
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


def derived_window_rows(max_length: int, mean_length: float, mean_bytes: float = 0.0) -> int:
    """Raw rows of a window that make about 200 packed rows, so that its last, partly filled one costs little.

    Fewer if the rows are so long that a data task would hold too much. max_length: tokens of a packed row; mean_length:
    mean tokens of a raw row, in all of its documents; mean_bytes: mean bytes of a raw row before it is encoded.
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


def _probe(rows: RowSet, encode: EncodeConfig, wanted: str = "rows can be trained") -> tuple[float, float]:
    """Encode the first rows of an epoch in this process, so that unusable data is refused at once.

    Returns:
        Mean tokens of the rows that can be trained, and mean bytes of those that can be read.
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
        if len(bad) >= _WARN_LOST_FRACTION * (len(bad) + len(made)):
            lost = "; ".join(f"{n} {name}" for name, n in Counter(result.reason for result in bad).most_common())
            logger.warning("of the first %d rows %d cannot be used: %s", len(bad) + len(made), len(bad), lost)
        if encode.family == "causal" and encode.truncation != "split":
            _warn_of_rewritten_history(made)
        texts = [row.text or json.dumps(row.value, ensure_ascii=False, default=str) for row in raw if row.error is None]
        return sum(map(sum, made)) / len(made), sum(map(len, texts)) / len(texts)
    reasons = Counter(result.reason for result in bad)
    examples = {result.reason: result.detail for result in bad}
    raise UserError(
        f"none of the first {len(bad)} {wanted}:\n"
        + "\n".join(f"  {count} x {reason}: {examples[reason]}" for reason, count in reasons.most_common())
    )


def _warn_of_rewritten_history(made: Sequence[Sequence[int]]) -> None:
    """Warn if rows become several texts, because the chat template rewrites earlier answers."""
    once = sum(max(row) for row in made)
    total = sum(map(sum, made))
    if total >= _WARN_REWRITTEN_RATIO * once:
        logger.warning(
            "the chat template rewrites earlier answers: the first %d rows make %d texts of %d tokens, %.1f times the "
            "last texts alone; data.keep_history true trains each row as one text, as rendered there",
            len(made),
            sum(map(len, made)),
            total,
            total / once,
        )
