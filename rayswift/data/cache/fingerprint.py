"""The ingredients of encoded data, and which of them have changed.

Ingredients are the contents of every source, the tokenizer, the chat template, and every setting that decides a token
or its place. A file is identified by size and SHA-256; a file with unchanged size and time is not read again. Paths are
no ingredient, so a cache can move with its sources.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tokenizers import Tokenizer

from rayswift.config.fields.source import SourceConfig
from rayswift.config.schema import DataConfig
from rayswift.data.encode.config import CAUSAL, RowKind
from rayswift.data.raw_rows import map_hash
from rayswift.data.sources.find import find
from rayswift.data.sources.layout import SourceFile
from rayswift.data.sources.named import parse_source
from rayswift.data.tokenizer.folder import frame_of, read_chat_template

# Fields of `data` that do not decide tokens; the sources are compared by their contents.
_NO_SETTINGS = ("dataset", "eval", "cache", "max_bad_fraction")
# Settings of a source that decide tokens or their place.
_SETTINGS_OF_A_SOURCE = ("columns", "system", "weight", "encoding")


@dataclass(frozen=True)
class FileContent:
    """A source file; `sha256` is empty for a file behind a URL, which is identified by size and time."""

    name: str
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class SourceContent:
    """A source: its files, or only its `name` for a hub data set; `num_rows` is N of `#N`; settings: its own ones."""

    name: str
    num_rows: int | None
    files: tuple[FileContent, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """All ingredients; `settings`: dotted path -> value."""

    tokenizer: str
    template: str
    settings: dict[str, Any]
    train: tuple[SourceContent, ...]
    eval: tuple[SourceContent, ...]

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Fingerprint":
        """The fingerprint in a manifest, which is written with `asdict`."""
        return TypeAdapter(Fingerprint).validate_python(tree)

    def differences(self, now: "Fingerprint") -> list[str]:
        """A line for each ingredient that has changed."""
        lines = []
        for part, path in (("train", "data.dataset"), ("eval", "data.eval")):
            was, is_now = getattr(self, part), getattr(now, part)
            if len(was) != len(is_now):
                lines.append(f"{path}: was {len(was)} sources, is {len(is_now)}")
            for before, after in zip(was, is_now, strict=False):
                lines += [f"{path}: {line}" for line in source_differences(before, after)]
        hashes = [{"tokenizer": each.tokenizer, "chat template": each.template} for each in (self, now)]
        return [*lines, *changes(*hashes), *changes(self.settings, now.settings)]


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each key whose value has changed."""
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    return [f"{name}: was {was.get(name)!r}, is {now.get(name)!r}" for name in names]


def take(
    data: DataConfig, tokenizer_dir: Path, seed: int, known: Fingerprint | None = None, kind: RowKind = CAUSAL
) -> Fingerprint:
    """The fingerprint of what would be encoded now; files of `known` that have not changed are not read."""
    hashes = by_stamp((*known.train, *known.eval)) if known else {}
    template, special_tokens = read_chat_template(tokenizer_dir)
    path = tokenizer_dir / "tokenizer.json"
    frame = asdict(frame_of(Tokenizer.from_file(str(path))))
    fields = {f"data.{name}": value for name, value in data.model_dump(mode="json").items() if name not in _NO_SETTINGS}
    if data.map:  # the function counts, not its path
        fields["data.map"] = f"{data.map.rpartition(':')[2]} of {map_hash(data.map)}"
    rows = {f"rows.{name}": value for name, value in json.loads(json.dumps(asdict(kind))).items()}
    return Fingerprint(
        tokenizer=_short_hash(path.read_bytes() + json.dumps([special_tokens, frame], sort_keys=True).encode()),
        template=_short_hash((template or "").encode()),
        settings={**fields, **rows, "train.seed": seed},
        train=contents(data.dataset, hashes),
        eval=contents(data.eval, hashes, held_out=True),
    )


def by_stamp(sources: Sequence[SourceContent]) -> dict[tuple[int, int], FileContent]:
    """Files that have been read, by size and time of change."""
    return {(file.size_bytes, file.modified_ns): file for source in sources for file in source.files if file.sha256}


def contents(
    sources: Sequence[str | SourceConfig], known: dict[tuple[int, int], FileContent], held_out: bool = False
) -> tuple[SourceContent, ...]:
    """The contents of `data.dataset` or (`held_out`) `data.eval`; unchanged files of `known` are not read again."""
    found = []
    for given in sources:
        source = parse_source(given)
        files = tuple(_content(file, known) for file in find(source, held_out).files)
        fields = {name: dict(asdict(source))[name] for name in _SETTINGS_OF_A_SOURCE}
        settings = {name: value for name, value in fields.items() if value is not None}
        found.append(SourceContent(source.name, source.num_rows, files, settings))
    return tuple(found)


def _content(file: SourceFile, known: dict[tuple[int, int], FileContent]) -> FileContent:
    before = known.get((file.size_bytes, file.modified_ns))
    if file.filesystem is not None:
        sha256 = ""
    elif before is not None and Path(before.name).name == Path(file.name).name:
        sha256 = before.sha256
    else:
        sha256 = hash_file(Path(file.path))
    return FileContent(file.name, file.size_bytes, file.modified_ns, sha256)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_differences(was: SourceContent, now: SourceContent) -> list[str]:
    """A line for each file or setting of a source that has changed."""
    lines = []
    if was.num_rows != now.num_rows:
        lines.append(f"rows asked of {now.name}: was {was.num_rows}, is {now.num_rows}")
    settings = [{f"{name} of {now.name}": value for name, value in each.settings.items()} for each in (was, now)]
    lines += changes(*settings)
    if not was.files and not now.files and was.name != now.name:
        lines.append(f"was {was.name}, is {now.name}")
    if len(was.files) != len(now.files):
        lines.append(f"{now.name}: was {len(was.files)} files, is {len(now.files)}")
    for before, after in zip(was.files, now.files, strict=False):
        have_hashes = before.sha256 and after.sha256
        is_same = before.sha256 == after.sha256 if have_hashes else before.modified_ns == after.modified_ns
        if before.size_bytes != after.size_bytes:
            lines.append(f"{after.name}: was {before.size_bytes} bytes, is {after.size_bytes}")
        elif not is_same:
            lines.append(f"{after.name}: its content has changed")
    return lines


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
