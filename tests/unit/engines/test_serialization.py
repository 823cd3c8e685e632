"""Serialized values are equal after the transfer."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rayswift.engines.engine import Collected
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest, Span
from rayswift.engines.serialization import Requests

KEYS = st.text(max_size=5)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(lambda ids: np.array(ids, np.int32))
SPANS = st.lists(st.integers(0, 3), min_size=1, max_size=2).map(
    lambda steps: tuple(Span(begin, PolicyVersion(7, step)) for begin, step in enumerate(steps))
)


@st.composite
def completions(draw: st.DrawFn) -> Completion:
    token_ids = draw(TOKENS)
    logprobs = -np.arange(len(token_ids), dtype=np.float32) / 3
    return Completion(draw(KEYS), token_ids, logprobs, draw(SPANS), draw(st.sampled_from(["stop", "length", None])))


def as_values(completion: Completion) -> tuple[object, ...]:
    arrays = completion.token_ids, completion.logprobs
    assert [each.dtype for each in arrays] == [np.int32, np.float32]
    return (completion.key, *(each.tolist() for each in arrays), completion.spans, completion.finish)


@given(st.lists(completions(), max_size=4), st.lists(completions(), max_size=4))
def test_what_an_engine_made(finished: list[Completion], parts: list[Completion]) -> None:
    sent = Collected(tuple(finished), tuple(parts), 7, 3)
    received = pickle.loads(pickle.dumps(sent, 5))
    for name in ("finished", "parts"):
        there, here = getattr(received, name), getattr(sent, name)
        assert [as_values(each) for each in there] == [as_values(each) for each in here]
    assert (received.num_made, received.num_unfinished) == (7, 3)


@given(st.lists(TOKENS, min_size=1, max_size=3), st.data())
def test_requests(prompts: list[np.ndarray], data: st.DataObject) -> None:
    one = st.builds(SampleRequest, KEYS, st.sampled_from(prompts), st.integers(1, 99), st.integers(0, 2**62), TOKENS)
    sent = data.draw(st.lists(one, max_size=5))
    received = pickle.loads(pickle.dumps(Requests(sent), 5))
    assert isinstance(received, Requests) and len(received) == len(sent)
    for there, here in zip(received, sent, strict=True):
        assert (there.key, there.max_tokens, there.seed) == (here.key, here.max_tokens, here.seed)
        for name in ("prompt_ids", "begun"):
            assert getattr(there, name).tolist() == getattr(here, name).tolist()
