"""Masks from the bytes of tokens are those from the tokenizer's own offsets."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from rayswift.data.encode.config import EncodeConfig
from rayswift.data.encode.encoder import EncodedRow, Encoder
from rayswift.data.encode.masks import masked, parts_of
from rayswift.data.encode.token_spans import TokenBytes, byte_positions
from rayswift.data.encode.turns import Document, Span
from tests.support.chat_templates import FAMILIES, write_tokenizer

TINY = Path(__file__).resolve().parents[4] / "examples" / "tiny"
# A letter whose parts are one character once normalised, letters of several bytes, text that looks like an end token.
TEXTS = st.lists(st.sampled_from(["a", "bc ", "\n", "é", "e\u0301", "中", "🎉", "<|im_end|>", "  ", "12"]), max_size=30)


@pytest.fixture(scope="module")
def normalising(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """An encoder whose tokenizer composes characters."""
    folder = tmp_path_factory.mktemp("normalising")
    write_tokenizer(folder, next(iter(FAMILIES.values())))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Encoder(EncodeConfig(str(folder), "", 4096))


@pytest.mark.parametrize("which", ["tiny", "normalising"])
@given(parts=TEXTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_masks_equal_those_from_offsets(
    which: str, normalising: Encoder, parts: list[str], data: st.DataObject
) -> None:
    encoder = normalising if which == "normalising" else Encoder(EncodeConfig(str(TINY), "", 4096))
    text = "".join(parts) + "end"
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6).filter(lambda x: len(x) > 1)))
    spans = tuple(Span(a, b, w) for a, b, w in zip(edges, edges[1:], [1.0, 0.0, 2.0, 1.0, 0.5], strict=False))
    (ours,) = encoder._tokenise([Document(text, spans)])
    encoding = encoder._tokenizer.encode(text, add_special_tokens=False)
    theirs = EncodedRow(*masked(np.array(encoding.ids, np.int32), parts_of(encoding, spans)))
    for name, value in asdict(theirs).items():
        assert np.array_equal(getattr(ours, name), value), name


def test_other_texts_have_no_positions() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    described = json.loads(tokenizer.to_str())
    found = TokenBytes.of(tokenizer, described)
    assert found is not None
    ids = tokenizer.encode("one two", add_special_tokens=False).ids
    begins = found.begins(np.array(ids, np.int32), ids, b"one two")
    assert begins is not None
    assert begins[0] == 0
    assert found.begins(np.array(ids, np.int32), ids, b"one tw") is None
    assert TokenBytes.of(tokenizer, {**described, "decoder": {"type": "Metaspace"}}) is None


def test_byte_positions() -> None:
    assert byte_positions("aé中b", [0, 1, 2, 3, 4]) == [0, 1, 3, 6, 7]
    assert byte_positions("aé", [-2, 1, 9]) == [0, 1, 3]
