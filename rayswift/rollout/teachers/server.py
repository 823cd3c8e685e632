"""A teacher as a server: vLLM's OpenAI-compatible server gives the log-probabilities of a prompt's tokens.

Token ids go in, so nothing is tokenised twice. Log-probabilities are at temperature 1, not at that of the run.
"""

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rayswift.engines.samples import Completion, PolicyVersion, Prompt, Span, TopTokens
from rayswift.log import UserError

_TRIES = 3
_RETRY_S = 1.0
_CALLS_AT_ONCE = 32
_PROBE = "The 3 quick foxes said: 17 + 25 = 42."
_BROKEN = (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError)
"""Errors of a server that cannot be reached, hangs up, or does not answer as vLLM does."""
_PASSING = (408, 425, 429)
"""Status codes, besides those from 500 on, after which a server may answer later."""
Encode = Callable[[str], Sequence[int]]


class ServerTeacher:
    """See `Teacher`.

    Args:
        url: Of the server, with or without `/v1`.
        top: Number of likeliest tokens to return at each token.
        timeout_s: Longest wait for an answer.
    """

    def __init__(self, url: str, top: int, timeout_s: float):
        self._url, self._top, self._timeout_s = url.rstrip("/").removesuffix("/v1"), top, timeout_s
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, "teacher")
        self._model = ""

    async def start(self, encode: Encode) -> None:
        """Check that the server answers, and that it has the vocabulary of `encode`.

        Raises:
            UserError: it does not answer, or has another vocabulary.
        """
        try:
            self._model = (await self._call("/v1/models", None))["data"][0]["id"]
            ids = list(encode(_PROBE))
            text = (await self._call("/detokenize", {"model": self._model, "tokens": ids}))["prompt"]
        except _BROKEN as error:
            raise UserError(
                f"the teacher's server {self._url} does not answer as vLLM's does: {type(error).__name__}: {error}; "
                "start it with `vllm serve`, and give its URL in rollout.teacher_server",
                exit_code=1,
            ) from error
        if text != _PROBE:
            raise UserError(
                f"the teacher at {self._url} has another vocabulary than model.path: it reads the tokens of {_PROBE!r} "
                f"as {text!r}; serve a model of the same family",
                exit_code=1,
            )

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Completion | str]:
        """See `Teacher`; all completions of a prompt in one call."""
        asked = {
            "model": self._model,
            "prompt": [[*prompt.seen_by_teacher.tolist(), *each.token_ids.tolist()] for each in completions],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": self._top,
        }
        for number in range(_TRIES):
            try:
                choices = (await self._call("/v1/completions", asked))["choices"]
                choices.sort(key=lambda choice: int(choice["index"]))
                return [
                    scored(each, choice["prompt_logprobs"], self._top)
                    for each, choice in zip(completions, choices, strict=True)
                ]
            except _BROKEN as error:
                why = f"{self._url}: {type(error).__name__}: {error}"
                if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in _PASSING:
                    break
            if number < _TRIES - 1:
                await asyncio.sleep(_RETRY_S * (number + 1))
        return [why] * len(completions)

    def describe(self) -> str:
        return f"server {self._url}"

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _call(self, path: str, body: Mapping[str, Any] | None) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, path, body)

    def _fetch(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.msg = f"{error.msg}: {error.read(2000).decode(errors='replace')}"
            raise


def scored(completion: Completion, prompt_logprobs: Sequence[Mapping[str, Any] | None], top: int) -> Completion:
    """Return the scores of a completion's tokens from a server's answer.

    Args:
        completion: The completion that was scored.
        prompt_logprobs: At each token of prompt and completion, by token id: vLLM gives the token itself and the
            likeliest ones.
        top: Number of likeliest tokens.

    Raises:
        ValueError: the server gives fewer.
        KeyError: it gives other tokens.
    """
    tokens = completion.token_ids.tolist()
    places = [place or {} for place in prompt_logprobs[len(prompt_logprobs) - len(tokens) :]]
    logprobs = [place[str(token)]["logprob"] for place, token in zip(places, tokens, strict=True)]
    best = [
        sorted(((each["rank"], int(token), each["logprob"]) for token, each in place.items()))[:top] for place in places
    ]
    if any(len(each) < top for each in best):
        raise ValueError(f"fewer than {top} likeliest tokens; start the server with --max-logprobs {top}")
    found = TopTokens(
        np.array([[token for _, token, _ in each] for each in best], np.int32).reshape(len(tokens), top),
        np.array([[value for _, _, value in each] for each in best], np.float32).reshape(len(tokens), top),
    )
    return Completion(
        completion.key,
        completion.token_ids,
        np.array(logprobs, np.float32),
        (Span(0, PolicyVersion(0, 0)),),
        "stop",
        found if top else None,
    )
