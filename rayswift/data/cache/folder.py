"""The folder of a cache: whether it is complete, and whether it holds what a run needs."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rayswift.config.schema import DataConfig
from rayswift.data.cache import fingerprint
from rayswift.data.cache.fingerprint import Fingerprint
from rayswift.data.cache.parts import FORMAT, MANIFEST, CachedWindows, PartSummary, PartWriter
from rayswift.data.encode.config import CAUSAL, RowKind
from rayswift.data.filesystem import write_whole
from rayswift.data.sequence.global_batches import judge
from rayswift.data.sequence.windows import WindowPlan
from rayswift.log import UserError

_STARTED = "started.json"  # ingredients of a cache that is not complete yet
_SPLITS = ("train", "eval")
_OWN = (MANIFEST, _STARTED, "work", *_SPLITS)

WriteParts = Callable[[PartWriter, range], Iterator[PartSummary]]
"""(writer, part numbers) -> their summaries, in order."""


def known(folder: Path) -> Fingerprint | None:
    """The ingredients of a cache, complete or not; None if the folder holds none."""
    tree = _read(folder / MANIFEST) or _read(folder / _STARTED)
    return Fingerprint.from_json(tree["fingerprint"]) if tree and tree["format"] == FORMAT else None


def start(folder: Path, made_from: Fingerprint, num_epochs: int) -> bool:
    """Prepare a folder for the parts of a cache, and keep the parts that an interrupted start of the same cache left.

    Returns:
        False if the cache is complete already.

    Raises:
        UserError: the folder cannot be written, or holds another cache or other files.
    """
    finished = _read(folder / MANIFEST)
    if finished is not None:
        lines = _differences(finished, made_from)
        stored = finished["splits"]["train"]["num_epochs"] if finished["format"] == FORMAT else num_epochs
        if stored != num_epochs:
            lines.append(f"encode.epochs: was {stored}, is {num_epochs}")
        if lines:
            raise UserError(
                f"encode.to = {str(folder)!r} holds a cache that was made from something else:\n"
                + "".join(f"  {line}\n" for line in lines)
                + "  choose another --to, or delete it"
            )
        return False
    begun = {"format": FORMAT, "fingerprint": asdict(made_from), "epochs": num_epochs}
    foreign = [path.name for path in folder.iterdir() if path.name not in _OWN] if folder.is_dir() else []
    if foreign:
        raise UserError(f"encode.to = {str(folder)!r} holds {foreign[0]}, not a file of a cache; choose another --to")
    try:
        if _read(folder / _STARTED) != json.loads(json.dumps(begun)):
            for name in _OWN:
                _remove(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _STARTED).write_text(json.dumps(begun), encoding="utf-8")
    except OSError as error:
        raise UserError(f"encode.to = {str(folder)!r} cannot be written: {error.strerror}") from error
    return True


def write(
    folder: Path,
    plans: Mapping[str, WindowPlan],
    made_from: Fingerprint,
    num_epochs: int,
    max_bad_fraction: float,
    write_parts: WriteParts,
) -> PartSummary:
    """Write every part that is missing, then the manifest; returns the sums over all epochs of the training rows.

    plans: the windows of `train`, and of `eval` if there are evaluation rows; num_epochs: epochs of `train` to write,
    evaluation has one; write_parts: runs a writer over part numbers.
    """
    ingredients = json.dumps([FORMAT, num_epochs, asdict(made_from)], sort_keys=True)
    digest = hashlib.sha256(ingredients.encode()).hexdigest()[:16]
    splits: dict[str, Any] = {}
    for name, plan in plans.items():
        epochs = num_epochs if name == "train" else 1
        # Few windows in a part if there are few in all, so that every core has work.
        per_part = min(max(1, plan.num_windows * epochs // 64), 32)
        writer = PartWriter(plan, str(folder / name), digest, epochs, per_part)
        for left in (folder / name).glob("*.partial"):
            left.unlink()
        summaries, counts = [], Counter[str]()
        where = f"the quarantine files in {folder / name}"
        for summary in write_parts(writer, range(writer.num_parts)):
            summaries.append(summary)
            counts.update(summary.counts)
            judge(counts, max_bad_fraction, plan.num_rows * epochs, where)
        judge(counts, max_bad_fraction, 0, where)
        splits[name] = {
            "num_rows": plan.num_rows,
            "window_rows": plan.window_rows,
            "num_windows": plan.num_windows,
            "num_epochs": epochs,
            "windows_per_part": per_part,
            "seed": plan.row_set.seed,
            "shuffle": plan.row_set.shuffle,
            "parts": [asdict(summary) for summary in summaries],
        }
    manifest = {"format": FORMAT, "fingerprint": asdict(made_from), "splits": splits}
    _remove(folder / "work")
    write_whole(folder / MANIFEST, json.dumps(manifest))
    _remove(folder / _STARTED)
    parts = [PartSummary(**part) for part in splits["train"]["parts"]]
    return PartSummary(
        file="",
        counts=dict(sum((Counter(part.counts) for part in parts), Counter())),
        num_packed_rows=sum(part.num_packed_rows for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_trained_tokens=sum(part.num_trained_tokens for part in parts),
        num_bytes=sum(part.num_bytes for part in parts),
    )


def open_cache(
    data: DataConfig, tokenizer_dir: Path, tokenizer_hash: str, seed: int, kind: RowKind = CAUSAL
) -> tuple[CachedWindows, CachedWindows | None]:
    """The windows of `data.cache`: for training, and for evaluation if there are any."""
    assert data.cache is not None
    folder = Path(data.cache)
    manifest = _read(folder / MANIFEST)
    if manifest is None:
        unfinished = " (it is incomplete: encode it again, its finished parts are kept)"
        raise UserError(
            f"data.cache = {data.cache!r} holds no complete cache{unfinished if (folder / _STARTED).exists() else ''}; "
            "make one with rayswift data encode --to"
        )
    made_from = known(folder)
    if made_from and data.window_rows in (None, manifest["splits"]["train"]["window_rows"]):
        # The run leaves the number open, or its resolved config has the one that the encoding chose.
        data = data.model_copy(update={"window_rows": made_from.settings["data.window_rows"]})
    lines = _differences(manifest, fingerprint.take(data, tokenizer_dir, seed, made_from, kind))
    if lines:
        raise UserError(
            f"data.cache = {data.cache!r} was made from something else:\n"
            + "".join(f"  {line}\n" for line in lines)
            + "  set these back, or encode again to another folder"
        )
    splits = {name: _windows(folder / name, split, tokenizer_hash) for name, split in manifest["splits"].items()}
    return splits["train"], splits.get("eval")


def _windows(folder: Path, split: dict[str, Any], tokenizer_hash: str) -> CachedWindows:
    for part in split["parts"]:
        path = folder / part["file"]
        size = path.stat().st_size if path.exists() else None
        if size != part["num_bytes"]:
            has = "is gone" if size is None else f"has {size} bytes, not {part['num_bytes']}"
            raise UserError(f"data.cache: {path} {has}; encode again to another folder")
    fields = {name: value for name, value in split.items() if name != "parts"}
    return CachedWindows(folder=str(folder.resolve()), tokenizer_hash=tokenizer_hash, **fields)


def _differences(manifest: dict[str, Any], now: Fingerprint) -> list[str]:
    if manifest["format"] != FORMAT:
        return [f"format: was {manifest['format']}, this rayswift reads {FORMAT}"]
    return Fingerprint.from_json(manifest["fingerprint"]).differences(now)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
