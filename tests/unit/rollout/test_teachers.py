"""Teachers outside the trainer: a server's answer, the teacher of each row, the scores that a rank gets."""

import asyncio
import json
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, SampleRequest, Scored, Span, TopTokens
from rayswift.engines.serialization import Requests, columns_of, completions_of
from rayswift.log import UserError
from rayswift.rollout.rounds import TeacherScores, lines_of, make_tokens
from rayswift.rollout.teachers.scoring import TeacherScorer
from rayswift.rollout.teachers.server import ServerTeacher, scored
from rayswift.rollout.teachers.several import TaggedTeachers

SPANS = (Span(0, PolicyVersion(0, 0)),)


def completion(*tokens: int, key: str = "0:0") -> Completion:
    return Completion(key, np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), SPANS, "stop")


def prompt(ordinal: int = 0, **more: Any) -> Prompt:
    return Prompt(ordinal, f"rows.jsonl:{ordinal}", 0, np.arange(2, 5, dtype=np.int32), (), more)


def place(chosen: int, rank: int, *best: int) -> dict[str, Any]:
    """vLLM's answer for a place: the likeliest tokens with log-probabilities -1, -2, ..., and the chosen one."""
    found = {str(token): {"logprob": -1.0 - i, "rank": i + 1} for i, token in enumerate(best)}
    return found | {str(chosen): {"logprob": -float(rank), "rank": rank}}


def test_what_a_server_tells_is_read_by_token_and_rank() -> None:
    scores = [None, place(3, 5, 8, 9), place(4, 1, 4, 6), place(7, 9, 6, 8)]
    found = scored(completion(4, 7), scores, 2)
    assert found.logprobs.tolist() == [-1.0, -9.0]
    assert found.top is not None
    assert (found.top.ids.tolist(), found.top.logprobs.tolist()) == ([[4, 6], [6, 8]], [[-1.0, -2.0], [-1.0, -2.0]])
    assert scored(completion(4, 7), scores, 0).top is None
    with pytest.raises(ValueError, match="start the server with --max-logprobs 4"):
        scored(completion(4, 7), scores, 4)


class Answers(BaseHTTPRequestHandler):
    """vLLM's server, as far as a teacher asks it; `words` is how it reads the probe."""

    words, failures, how = "", 0, "503"

    def do_GET(self) -> None:
        self._say({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/detokenize":
            return self._say({"prompt": type(self).words})
        if type(self).failures:
            type(self).failures -= 1
            return self._fail()
        rows = [[None, *(place(token, 1, token) for token in ids[1:])] for ids in asked["prompt"]]
        choices = [{"index": i, "prompt_logprobs": row} for i, row in enumerate(rows)]
        self._say({"choices": choices[::-1]})

    def _fail(self) -> None:
        how = type(self).how
        if how.isdigit():
            return self.send_error(int(how))
        self.send_response(200)
        if how == "cut off":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write({"cut off": b'{"choices"', "no scores": b'{"choices": [{"index": 0}]}', "a list": b"[]"}[how])

    def _say(self, answer: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Answers.words, Answers.failures, Answers.how = "The 3 quick foxes said: 17 + 25 = 42.", 0, "503"
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


async def asked(url: str, completions: Sequence[Completion]) -> Sequence[Completion | str]:
    teacher = ServerTeacher(url, 1, 10.0)
    try:
        await teacher.start(lambda text: [1, 2])
        return await teacher.score(prompt(), completions)
    finally:
        await teacher.close()


@pytest.mark.parametrize("how", ["503", "429", "cut off", "no scores", "a list"])
def test_a_server_scores_all_completions_of_a_prompt_and_is_asked_again_where_it_fails(url: str, how: str) -> None:
    Answers.failures, Answers.how = 1, how
    found = asyncio.run(asked(url, [completion(5, 6), completion(9)]))
    assert [each.token_ids.tolist() for each in found if isinstance(each, Completion)] == [[5, 6], [9]]


def test_a_server_with_another_vocabulary_and_one_that_is_not_there_are_refused(url: str) -> None:
    Answers.words = "something else"
    with pytest.raises(UserError, match=r"another vocabulary than model.path: it reads the tokens of .* as 'something"):
        asyncio.run(asked(url, []))
    with pytest.raises(UserError, match="does not answer as vLLM's does"):
        asyncio.run(asked("http://127.0.0.1:1", []))


class Says:
    """A teacher whose log-probabilities are a number."""

    def __init__(self, value: float):
        self._value = value

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Completion | str]:
        return [replace(each, logprobs=np.full(len(each.token_ids), self._value, np.float32)) for each in completions]

    def describe(self) -> str:
        return str(self._value)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("key", "row", "wanted"),
    [
        ("domain", {"domain": "math"}, 1.0),
        ("domain", {"domain": "code"}, 2.0),
        ("domain", {"domain": "law"}, 3.0),
        ("domain", {}, 3.0),
        ("dataset", {}, 4.0),
        ("dataset", {"dataset": "math"}, 1.0),
    ],
)
def test_a_row_is_scored_by_the_teacher_of_its_tag(key: str, row: dict[str, Any], wanted: float) -> None:
    teachers = [(("math",), Says(1.0)), (("code", "logic"), Says(2.0)), ((), Says(3.0)), (("rows.jsonl",), Says(4.0))]
    (found,) = asyncio.run(TaggedTeachers(teachers, key).score(prompt(**row), [completion(5, 6)]))
    assert isinstance(found, Completion)
    assert found.logprobs.tolist() == [wanted, wanted]


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [("rows", 1.0), ("data/rows/", 1.0), ("data/rows/*.jsonl", 1.0), ("data/rows/b.jsonl#9", 1.0), ("data/other", 2.0)],
)
def test_a_row_without_a_tag_is_of_the_entry_that_it_came_from(entry: str, wanted: float) -> None:
    """A folder, a glob, a part of a file; of two that fit, the one that says more."""
    teachers = [((entry,), Says(1.0)), (("data",), Says(2.0))]
    row = replace(prompt(), id="data/rows/b.jsonl:7")
    (found,) = asyncio.run(TaggedTeachers(teachers, "dataset").score(row, [completion(5)]))
    assert isinstance(found, Completion)
    assert found.logprobs.tolist() == [wanted]


def test_a_row_that_no_teacher_takes_fails_by_name() -> None:
    teacher = TaggedTeachers([(("math",), Says(1.0))], "domain")
    found = asyncio.run(TeacherScorer(Rewarded(), teacher).score(prompt(domain="law"), [completion(5)]))
    assert found == ["teacher: no teacher for domain = 'law'; there are math"]


class Writes:
    """A teacher that writes as many sevens as the prompt has tokens."""

    async def write(self, prompt: Prompt) -> Completion | str:
        return completion(*[7] * len(prompt.input_ids)) if prompt.ordinal else "it is gone"


def test_a_teacher_writes_what_is_not_rewarded_and_scores_it_too() -> None:
    begun = replace(completion(), spans=(Span(0, PolicyVersion(5, 3)),))
    for teacher, logprobs in ((None, [0.0] * 3), (Says(2.0), [2.0] * 3)):
        taught = TeacherScorer(Rewarded(), teacher, Writes())
        (found,) = asyncio.run(taught.score(prompt(1), [begun], rewarded=False))
        assert isinstance(found, Scored)
        assert (found.completion.token_ids.tolist(), found.completion.spans) == ([7, 7, 7], begun.spans)
        scores = found.completion.teacher
        assert (scores.logprobs.tolist() if scores else [0.0] * 3) == logprobs
        assert asyncio.run(taught.score(prompt(0), [begun], rewarded=False)) == ["teacher: it is gone"]
        (sampled,) = asyncio.run(taught.score(prompt(1), [completion(5)]))
        assert isinstance(sampled, Scored) and sampled.completion.token_ids.tolist() == [5]


class Rewarded:
    async def score(
        self, prompt: Prompt, completions: Sequence[Completion], rewarded: bool = True
    ) -> list[Scored | str]:
        return [Scored(each, (), 0.0) for each in completions]


def test_scores_reach_the_rank_that_trains_the_completion() -> None:
    top = TopTokens(np.arange(4, dtype=np.int32).reshape(2, 2), -np.arange(4, dtype=np.float32).reshape(2, 2))
    scores = [replace(completion(5, 6), logprobs=np.full(2, -n, np.float32), top=top) for n in range(3)]
    groups = [
        Group(prompt(n), (Scored(replace(completion(5, 6), teacher=score), (), 0.0),)) for n, score in enumerate(scores)
    ]
    tokens = make_tokens(lines_of(groups), np.array([2, 0]))
    assert tokens.scores is not None and tokens.scores.top is not None
    assert tokens.scores.logprobs.tolist() == [-2, -2, 0, 0]
    assert tokens.scores.top.ids.tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert TeacherScores.of([completion(5)]) is None


def test_requests_and_completions_that_score_travel_whole() -> None:
    top = TopTokens(np.arange(4, dtype=np.int32).reshape(2, 2), -np.arange(4, dtype=np.float32).reshape(2, 2))
    sent = (replace(completion(5, 6), top=top), completion(1, key="0:1"))
    back = completions_of(pickle.loads(pickle.dumps(columns_of(sent))))
    assert back[0].top is not None and back[1].top is None
    assert (back[0].top.ids == top.ids).all() and (back[0].top.logprobs == top.logprobs).all()
    requests = [
        SampleRequest("a", prompt().input_ids, 3, 0, np.array([5, 6], np.int32), 2),
        SampleRequest("b", prompt().input_ids, 3, 0),
    ]
    assert [each.top for each in pickle.loads(pickle.dumps(Requests(requests)))] == [2, None]
