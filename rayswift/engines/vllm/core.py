"""vLLM in this process: token ids in; token ids, log-probabilities and the version of each token out.

`engine.py` makes an asyncio object of it. Unfinished completions are read from vLLM's output processor only on request:
an output object for every token costs a tenth of a small model's speed.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayswift.data.feed.feed import StaleAttempt
from rayswift.engines.engine import Collected, LoadFailed, NoWeights, RequestRefused
from rayswift.engines.pool.merge_parts import continued_seed, part
from rayswift.engines.pool.probing import Scored, TextScore
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest, Span
from rayswift.engines.tensors import as_tensors, spooled, write_adapter
from rayswift.engines.vllm.build import SCORE_PLACES, build, score_params
from rayswift.engines.vllm.log_tail import LogTail
from rayswift.engines.vllm.scores import scored
from rayswift.engines.vllm.setup import EngineSetup
from rayswift.engines.weights import Bytes, Published, TensorInfo
from rayswift.log import UserError

_ADAPTER = "adapter"


@dataclass
class _Sample:
    """A request in flight: its id in vLLM, the versions that sampled its tokens, how many tokens were returned."""

    request: SampleRequest
    internal_id: str
    spans: list[Span]
    taken: int = 0


class VllmCore:
    """A vLLM engine and its requests in flight; for one thread.

    Raises:
        UserError: vLLM is not installed, or does not start; with vLLM's last log lines.
    """

    def __init__(self, setup: EngineSetup):
        self._setup = setup
        self._log = LogTail("vllm")
        self._version: PolicyVersion | None = None
        self._samples: dict[str, _Sample] = {}
        self._scores: dict[str, tuple[TextScore, int]] = {}
        self._num_scores = 0
        self._num_tokens = 0
        self._adapter: Any = None  # vLLM's LoRARequest
        self._adapter_folder: Path | None = None
        self.finished: list[Completion] = []
        try:
            self._llm, self._sampling = build(setup)
            self._most_running = self._llm.engine_core.engine_core.scheduler.max_num_running_reqs - SCORE_PLACES
        except UserError:
            raise
        except Exception as error:
            raise self.explained(f"the vLLM engine of {setup.model} cannot start", error) from error

    def explained(self, what: str, error: BaseException) -> UserError:
        """Return an error of vLLM with the last lines that vLLM logged."""
        return UserError(f"{what}: {type(error).__name__}: {error}{self._log.indented()}", exit_code=1)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._samples or self._scores)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Accept all requests, or none of them.

        Raises:
            NoWeights: none were loaded, or the last load failed.
            RequestRefused: a request has no room in the engine's window, or vLLM does not take it.
        """
        version = self._held()
        for request in requests:
            length, room = len(request.prompt_ids), request.max_tokens
            if room <= len(request.begun) or length + room > self._setup.max_model_len:
                raise RequestRefused(
                    f"request {request.key}: a prompt of {length} tokens with {room} for its completion, "
                    f"{len(request.begun)} of them there, does not fit a window of {self._setup.max_model_len}; "
                    "raise rollout.max_model_len",
                    exit_code=1,
                )
            if request.key in self._samples:
                raise RequestRefused(f"request {request.key} is in flight already", exit_code=1)
        try:
            for request in requests:
                if request.top is None:
                    room = request.max_tokens - len(request.begun)
                    params = self._sampling(room, continued_seed(request), request.sampling)
                else:
                    params = score_params(request.top)
                prompt = {"prompt_token_ids": [*request.prompt_ids.tolist(), *request.begun.tolist()]}
                internal = self._llm.add_request(request.key, prompt, params, lora_request=self._adapter)
                self._samples[request.key] = _Sample(request, internal, [Span(0, version)])
        except Exception as error:
            self.abort([request.key for request in requests])
            if isinstance(error, ValueError):
                raise RequestRefused(f"request {request.key}: {error}", exit_code=1) from error
            raise

    def _held(self) -> PolicyVersion:
        if self._version is None:
            raise NoWeights("the engine has no weights; load a published version first")
        return self._version

    def step(self) -> None:
        """Make one token for every running request."""
        scheduler, places = self._llm.engine_core.engine_core.scheduler, self._most_running
        # Samples that took a place meanwhile keep it: vLLM must not have more running requests than the limit.
        scheduler.max_num_running_reqs = places + SCORE_PLACES if self._scores else max(places, len(scheduler.running))
        for output in self._llm.step():
            if output.finished:
                self._finish(output)

    def _finish(self, output: Any) -> None:
        if output.request_id in self._scores:
            score, place = self._scores.pop(output.request_id)
            return score.take(place, output.outputs[0].logprobs[0])
        sample = self._samples.pop(output.request_id)
        [made] = output.outputs
        if made.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended request {output.request_id} with {made.finish_reason!r}")
        self._num_tokens += len(made.token_ids)
        if sample.request.top is not None:
            self.finished.append(scored(sample.request, sample.spans, output.prompt_logprobs))
            return
        logprobs = made.logprobs.logprobs
        self.finished.append(part(sample.request.key, sample.spans, 0, made.token_ids, logprobs, made.finish_reason))

    def take(self, part_tokens: int | None) -> Collected:
        finished, self.finished = tuple(self.finished), []
        made = self._made()
        parts: list[Completion] = []
        if part_tokens is not None:
            for sample, number in zip(self._samples.values(), made, strict=True):
                if number - sample.taken >= part_tokens:
                    parts.append(self._new(sample, sample.taken))
                    sample.taken = number
        return Collected(finished, tuple(parts), self._num_tokens + sum(made), sum(made))

    def _made(self) -> list[int]:
        """Return the tokens of each sample in flight."""
        states = self._llm.output_processor.request_states
        return [len(states[each.internal_id].detokenizer.output_token_ids) for each in self._samples.values()]

    def abort(self, keys: Sequence[str]) -> tuple[Completion, ...]:
        """Abort those of these requests that are in flight, and return all tokens of each, finished ones included."""
        asked = set(keys)
        samples = [self._samples.pop(key) for key in keys if key in self._samples]
        parts = [self._new(sample, 0) for sample in samples]
        self._num_tokens += sum(len(new.token_ids) for new in parts)
        self._llm.abort_request([sample.request.key for sample in samples])
        parts += [completion for completion in self.finished if completion.key in asked]
        self.finished = [completion for completion in self.finished if completion.key not in asked]
        return tuple(parts)

    def _new(self, sample: _Sample, begin: int) -> Completion:
        """Return the tokens of an unfinished sample from a position on."""
        state = self._llm.output_processor.request_states[sample.internal_id]
        if sample.request.top is not None:  # a partly scored text has no result
            return part(sample.request.key, sample.spans, 0, (), (), None)
        tokens, logprobs = state.detokenizer.output_token_ids, state.logprobs_processor.logprobs.logprobs
        return part(sample.request.key, sample.spans, begin, tokens, logprobs, None)

    def load(self, published: Published, tensors: Sequence[tuple[TensorInfo, Bytes]]) -> float:
        """Load verified weights, and return the seconds it took; requests in flight continue with them.

        Raises:
            StaleAttempt: the engine has newer ones.
            LoadFailed: they are not the model's, or vLLM fails with them.
        """
        version = published.version
        if self._version and version < self._version:
            raise StaleAttempt(f"weights {version} come after {self._version}")
        began = time.perf_counter()
        try:
            if published.adapter is not None:
                self._load_adapter(dict(published.adapter), tensors)
            elif self._setup.tensor_parallel_size > 1:
                with spooled(tensors) as spool:
                    self._llm.collective_rpc("load_in_place", args=(spool,))
            else:
                self._llm.collective_rpc("load_in_place", args=(as_tensors(tensors),))
        except Exception as error:
            # Some of the tensors may be in place: nothing is sampled from such weights.
            raise LoadFailed(str(self.explained("vLLM stopped", error)), self._lose_weights()) from error
        # Results of the old weights, keys and values of running requests included, are computed again.
        self._llm.reset_prefix_cache(reset_running_requests=True)
        self._version = version
        for sample in self._samples.values():
            self._begin_span(sample, version)
        return time.perf_counter() - began

    def _lose_weights(self) -> tuple[Completion, ...]:
        """Mark the weights as lost, and abort all requests."""
        self._version = None
        for score in {id(score): score for score, _ in self._scores.values()}.values():
            score.done(NoWeights("the engine has lost its weights"))
        self._llm.abort_request([*self._scores])
        self._scores.clear()
        return self.abort([*self._samples])

    def _begin_span(self, sample: _Sample, version: PolicyVersion) -> None:
        state = self._llm.output_processor.request_states[sample.internal_id]
        begin = len(state.detokenizer.output_token_ids)
        if sample.spans[-1].begin == begin:
            sample.spans.pop()
        sample.spans.append(Span(begin, version))

    def _load_adapter(self, config: dict[str, Any], tensors: Sequence[tuple[TensorInfo, Bytes]]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="rayswift-adapter-"))
        try:
            write_adapter(folder, config, as_tensors(tensors))
            self._use_adapter(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self._adapter_folder:
            shutil.rmtree(self._adapter_folder, ignore_errors=True)
        self._adapter_folder = folder

    def _use_adapter(self, folder: Path) -> None:
        """Sample with the adapter in a folder, in place of the previous one."""
        from vllm.lora.request import LoRARequest

        self._llm.add_lora(LoRARequest(_ADAPTER, 1, str(folder), load_inplace=True))
        self._adapter = LoRARequest(_ADAPTER, 1, str(folder))

    def serve_own_weights(self, version: PolicyVersion) -> None:
        """Serve the weights that the engine was built from, with the adapter of its setup, as this version."""
        assert self._setup.load_format == "auto", "the weights are random"
        if self._setup.adapter:
            self._use_adapter(Path(self._setup.adapter))
        self._version = version

    def score(self, token_ids: NDArray[np.int32], done: Scored) -> int:
        """Have `done` called with the log-probabilities [T - 1] of tokens 1 to T - 1, at the sampling's temperature.

        Ahead of waiting requests, in slots reserved for scores; `give_up_score` takes the returned number.

        One request for each token, which samples a token after those before it: vLLM 0.29 fails if log-probabilities of
        the prompt itself are requested with an adapter.
        """
        from vllm import SamplingParams

        self._held()
        self._num_scores += 1
        ids = token_ids.tolist()
        score = TextScore(ids[1:], done)
        for place, token in enumerate(score.tokens):
            key = f"score:{self._num_scores}:{place}"
            params = SamplingParams(max_tokens=1, logprob_token_ids=[token], detokenize=False, skip_clone=True)
            prompt = {"prompt_token_ids": ids[: place + 1]}
            self._llm.add_request(key, prompt, params, lora_request=self._adapter, priority=-1)
            self._scores[key] = score, place
        return self._num_scores

    def give_up_score(self, number: int) -> None:
        """Abort the rest of a text's scoring."""
        keys = [key for key in self._scores if key.startswith(f"score:{number}:")]
        for key in keys:
            del self._scores[key]
        self._llm.abort_request(keys)

    def close(self) -> None:
        """Free vLLM's memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.engine_core.shutdown()
        cleanup_dist_env_and_memory()
        if self._adapter_folder:
            shutil.rmtree(self._adapter_folder, ignore_errors=True)
        self._log.close()
