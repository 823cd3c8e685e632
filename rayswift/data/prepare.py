"""What the driver makes ready before data tasks start: tokenizer files, open sources, a look at the first rows."""

import hashlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rayswift.config.schema import DataConfig, ModelConfig
from rayswift.data.encode import EncodeConfig, Encoder
from rayswift.data.rows import BadRow
from rayswift.data.sources import open_sources
from rayswift.data.windows import RowSet, WindowPlan
from rayswift.log import UserError

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_PROBED_ROWS = 64


def prepare_tokenizer(model: ModelConfig, folder: Path) -> Path:
    """Copy (or convert) the model's tokenizer to `folder`, with the chat template that is trained.

    Raises:
        UserError: the model has no tokenizer, or the template file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(model.path) if Path(model.path).is_dir() else _from_hub(model)
    if (source / "tokenizer.json").exists():
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, folder / name)
    else:
        _convert(model, source, folder)
    if model.chat_template:
        try:
            template = Path(model.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"model.chat_template = {model.chat_template!r}: {error.strerror}") from error
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def hash_files(folder: Path) -> str:
    """A hash over the contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def plan_windows(
    data: DataConfig, tokenizer_dir: Path, seed: int, work_dir: Path
) -> tuple[WindowPlan, WindowPlan | None]:
    """Open all sources: the training windows, and the evaluation windows if there are evaluation rows.

    Raises:
        UserError: a source cannot be read, or none of the first rows can be trained.
    """
    encode = EncodeConfig(
        str(tokenizer_dir),
        hash_files(tokenizer_dir),
        data.max_length,
        data.truncation,
        data.loss_on,
        dict(data.columns),
        data.system,
    )
    stores = open_sources(data.dataset, work_dir / "train")
    part = "train" if data.eval_fraction else "all"
    rows = RowSet(stores, seed, data.shuffle, part, data.eval_fraction)
    train = WindowPlan(rows, encode, data.packing, data.window_rows)
    held_out: RowSet | None = None
    if data.eval:
        held_out = RowSet(open_sources(data.eval, work_dir / "eval"), seed, shuffle=False)
    elif data.eval_fraction:
        held_out = replace(rows, part="held_out", shuffle=False)
        if not rows.num_rows or not held_out.num_rows:
            raise UserError(
                f"data.eval_fraction = {data.eval_fraction} of {rows.num_rows + held_out.num_rows} rows leaves "
                f"{rows.num_rows} to train and {held_out.num_rows} to evaluate"
            )
    evaluation = replace(train, row_set=held_out) if held_out else None
    for plan in (train, evaluation):
        if plan:
            probe(plan)
    return train, evaluation


def probe(plan: WindowPlan) -> None:
    """Encode the first rows of an epoch here, so that data that cannot work at all is refused at once.

    Raises:
        UserError: not one of them can be trained; it says why.
    """
    raw = plan.row_set.read(plan.row_set.rows_at(0, _PROBED_ROWS, 0))
    readable = [row.value for row in raw if row.error is None]
    bad = [row.error for row in raw if row.error is not None]
    bad += [result for result in Encoder(plan.encode).encode(readable) if isinstance(result, BadRow)]
    if len(bad) < len(raw):
        return
    reasons = Counter(result.reason for result in bad)
    examples = {result.reason: result.detail for result in bad}
    raise UserError(
        f"none of the first {len(bad)} rows can be trained:\n"
        + "\n".join(f"  {count} x {reason}: {examples[reason]}" for reason, count in reasons.most_common())
    )


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = [
            "tokenizer*",
            "special_tokens_map.json",
            "chat_template*",
            "*config.json",
            "*.model",
            "vocab*",
            "merges*",
        ]
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except Exception as error:  # whatever the hub's client raises, the user asked for this id
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"model.path = {model.path!r} is no folder here and could not be had from the hub: "
            f"{type(error).__name__}: {first_line}"
        ) from error


def _convert(model: ModelConfig, source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"model.path = {model.path!r} has no tokenizer that loads: {first_line}") from error
    tokenizer.save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"model.path = {model.path!r}: its tokenizer has no fast form, which masking the loss needs")
