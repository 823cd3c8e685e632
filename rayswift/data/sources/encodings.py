"""Recognise by a file's first bytes that it is text in another encoding than UTF-8, or another kind of file.

Text is copied as UTF-8 if its first bytes show its encoding (a byte order mark, zeros between letters) or the source
names it. If most lines are no UTF-8, the error suggests an encoding, but none is assumed: a wrong one would train
garbled text.
"""

import codecs
import itertools
from pathlib import Path

from charset_normalizer import from_bytes

from rayswift.log import UserError, logger

_LOOKED_AT_BYTES, _COPY_BYTES = 1 << 20, 1 << 22
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_TEXT = (".jsonl", ".json", ".csv", ".tsv", ".txt")
# Fewer lines than this may be bad rows of a UTF-8 file.
_LINES_OF_ANOTHER_ENCODING = 10
_OTHER_KINDS = {
    b"\x1f\x8b\x08": ("gzip", "rename it so that it ends in .gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "rename it so that it ends in .zst"),
    b"PK\x03\x04": ("a zip archive (as Excel's files are)", "unpack it, or save the sheet as csv"),
    b"PAR1": ("Parquet", "rename it so that it ends in .parquet"),
    b"ARROW1": ("Arrow", "rename it so that it ends in .arrow"),
    b"SQLite format 3": ("an SQLite database", "write its table to jsonl or csv"),
    b"%PDF-": ("a PDF", "write its text to .txt or jsonl"),
}
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")


def as_utf8(name: str, path: Path, copy: Path, suffix: str, encoding: str | None) -> Path:
    """The path of a file's text in UTF-8: `path`, or `copy` for text in another encoding; other files are unchanged.

    suffix: the suffix of the file's name; encoding: the encoding that the user gives.
    """
    with open(path, "rb") as file:
        start = file.read(_LOOKED_AT_BYTES)
    _refuse_other_kinds(name, start, suffix)
    if suffix not in _TEXT:
        return path
    found = encoding or next((name for mark, name in _MARKS.items() if start.startswith(mark)), _wide(start))
    if found is None:
        _refuse_another_encoding(name, start)
        return path
    try:
        if codecs.lookup(found).name == "utf-8":
            return path
    except LookupError as error:
        raise UserError(f"data.dataset: {name}: encoding = {found!r} is no encoding that Python knows") from error
    if encoding is None:
        logger.info("%s is read as %s", name, found)
    _transcode(name, path, copy, found)
    return copy


def _refuse_other_kinds(name: str, start: bytes, suffix: str) -> None:
    if start.startswith(_POINTER):
        raise UserError(f"data.dataset: {name} is a Git LFS pointer, not the file itself; run git lfs pull beside it")
    if suffix not in _TEXT:
        return
    for magic, (kind, fix) in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise UserError(f"data.dataset: {name} is {kind}, whatever its name says; {fix}")
    if suffix != ".txt" and start.lstrip()[: len(_PAGES[0])].lower().startswith(_PAGES):
        raise UserError(f"data.dataset: {name} is a web page; download the raw file")


def _wide(start: bytes) -> str | None:
    """The kind of UTF-16 without a byte order mark, where every other byte of Latin text is zero; None if it is not."""
    even, odd = start[::2], start[1::2]
    if len(start) < 8 or start.count(0) * 4 < len(start):
        return None
    if odd.count(0) > 20 * even.count(0):
        return "utf-16-le"
    return "utf-16-be" if even.count(0) > 20 * odd.count(0) else None


def _refuse_another_encoding(name: str, start: bytes) -> None:
    """Raise if most of the lines with letters beyond ASCII are no UTF-8."""
    lines = start.split(b"\n")
    if len(start) == _LOOKED_AT_BYTES:
        lines = lines[:-1]  # it may end inside a letter
    bad = [line for line in lines if line.decode("utf-8", errors="ignore").encode() != line]
    num_beyond_ascii = sum(not line.isascii() for line in lines)
    if len(bad) < _LINES_OF_ANOTHER_ENCODING or 2 * len(bad) < num_beyond_ascii:
        return
    guess = from_bytes(b"\n".join(itertools.islice(bad, 1000))).best()
    like = f"; it looks like {guess.encoding}" if guess is not None else ""
    named = guess.encoding if guess is not None else "ENCODING"
    raise UserError(
        f"data.dataset: {name} is not UTF-8: of its first {num_beyond_ascii} lines with other letters than ASCII's "
        f"{len(bad)} are not{like}. Name its encoding, as in data.dataset: [{{path: {name}, encoding: {named}}}], or "
        f"convert it: iconv -f {named} -t utf-8"
    )


def _transcode(name: str, path: Path, copy: Path, encoding: str) -> None:
    partial = copy.with_suffix(".partial")
    try:
        with (
            open(path, encoding=encoding, newline="") as source,
            open(partial, "w", encoding="utf-8", newline="") as sink,
        ):
            while text := source.read(_COPY_BYTES):
                sink.write(text)
    except UnicodeError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"data.dataset: {name} cannot be read as {encoding}: {error}") from error
    partial.replace(copy)
