"""What encoded data was made from, and what of it has changed since.

Ingredients: the contents of every source, the tokenizer, the chat template, and every setting that decides which
tokens stand where. A file is known by size and SHA-256; one whose size and time of change are as noted is not read
again. Paths are no ingredient, so a cache moves with its sources.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rayswift.config.schema import DataConfig
from rayswift.config.source import SourceConfig
from rayswift.data.encode.config import CAUSAL, RowKind
from rayswift.data.raw_rows import map_hash
from rayswift.data.sources.find import SourceFile, find
from rayswift.data.sources.named import parse_source
from rayswift.data.tokenizer.folder import frame_of, read_chat_template

# Fields of `data` that are no settings of the encoding: the sources themselves, and what is judged while training.
_NO_SETTINGS = ("dataset", "eval", "cache", "max_bad_fraction")
# What a source may set for itself that decides its tokens or their place.
_SETTINGS_OF_A_SOURCE = ("columns", "system", "weight", "encoding")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileContent:
    """A source file as it was read; `sha256` is empty for one behind a URL, which is known by size and time."""

    name: str
    size_bytes: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True)
class SourceContent:
    """A source: its files, or for a data set of the hub only its `name`; `num_rows` as `#N` asks.

    settings: what it sets for itself of how its rows are read.
    """

    name: str
    num_rows: int | None
    files: tuple[FileContent, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """All ingredients; `settings` by dotted path."""

    tokenizer: str
    template: str
    settings: dict[str, Any]
    train: tuple[SourceContent, ...]
    eval: tuple[SourceContent, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Fingerprint":
        """What `to_json` wrote."""
        parts = {
            part: tuple(
                SourceContent(**{**source, "files": tuple(FileContent(**file) for file in source["files"])})
                for source in tree[part]
            )
            for part in ("train", "eval")
        }
        return Fingerprint(**{**tree, **parts})

    def differences(self, now: "Fingerprint") -> list[str]:
        """A line for each ingredient that is another one now."""
        lines = []
        for part, path in (("train", "data.dataset"), ("eval", "data.eval")):
            was, is_now = getattr(self, part), getattr(now, part)
            if len(was) != len(is_now):
                lines.append(f"{path}: was {len(was)} sources, is {len(is_now)}")
            for before, after in zip(was, is_now, strict=False):
                lines += [f"{path}: {line}" for line in source_differences(before, after)]
        if self.tokenizer != now.tokenizer:
            lines.append(f"tokenizer: was {self.tokenizer}, is {now.tokenizer}")
        if self.template != now.template:
            lines.append(f"chat template: was {self.template}, is {now.template}")
        for name in sorted({*self.settings, *now.settings}):
            before, after = self.settings.get(name), now.settings.get(name)
            if before != after:
                lines.append(f"{name}: was {before!r}, is {after!r}")
        return lines


def take(
    data: DataConfig, tokenizer_dir: Path, seed: int, known: Fingerprint | None = None, kind: RowKind = CAUSAL
) -> Fingerprint:
    """The fingerprint of what would be encoded now; `known` spares reading files that have not changed since."""
    hashes = by_stamp((*known.train, *known.eval)) if known else {}
    template, special_tokens = read_chat_template(tokenizer_dir)
    path = tokenizer_dir / "tokenizer.json"
    frame = asdict(frame_of(Tokenizer.from_file(str(path))))
    fields = {f"data.{name}": value for name, value in data.model_dump(mode="json").items() if name not in _NO_SETTINGS}
    if data.map:  # what it does decides, not where it lies
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
    """Files by size and time of change, for `contents`; those that were not read yet left out."""
    return {(file.size_bytes, file.modified_ns): file for source in sources for file in source.files if file.sha256}


def contents(
    sources: Sequence[str | SourceConfig], known: dict[tuple[int, int], FileContent], held_out: bool = False
) -> tuple[SourceContent, ...]:
    """What the sources hold now; `known` files that have not changed since are not read.

    Args:
        sources: As in `data.dataset`.
        known: See `by_stamp`.
        held_out: Whether they are to evaluate on.
    """
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
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def source_differences(was: SourceContent, now: SourceContent) -> list[str]:
    """A line for each file of a source that is another one now."""
    lines = []
    if was.num_rows != now.num_rows:
        lines.append(f"rows asked of {now.name}: was {was.num_rows}, is {now.num_rows}")
    for name in sorted({*was.settings, *now.settings}):
        if was.settings.get(name) != now.settings.get(name):
            lines.append(f"{name} of {now.name}: was {was.settings.get(name)!r}, is {now.settings.get(name)!r}")
    if not was.files and not now.files and was.name != now.name:
        lines.append(f"was {was.name}, is {now.name}")
    if len(was.files) != len(now.files):
        lines.append(f"{now.name}: was {len(was.files)} files, is {len(now.files)}")
    for before, after in zip(was.files, now.files, strict=False):
        if before.size_bytes != after.size_bytes:
            lines.append(f"{after.name}: was {before.size_bytes} bytes, is {after.size_bytes}")
        elif before.sha256 and after.sha256:
            if before.sha256 != after.sha256:
                lines.append(f"{after.name}: its content has changed")
        elif before.modified_ns != after.modified_ns:
            lines.append(f"{after.name}: its content has changed")
    return lines


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
