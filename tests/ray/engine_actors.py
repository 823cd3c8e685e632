"""Two real vLLM engines in actors, tied and untied: what `test_engine.py` looks at, as one line of JSON.

python -m tests.ray.engine_actors FOLDER
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rayswift.engines.engine import SamplingSettings
from rayswift.engines.pool.actors import ActorEngine
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest
from rayswift.engines.vllm.engine import VllmEngine
from rayswift.engines.vllm.setup import EngineSetup, engine_options
from rayswift.engines.weights import ObjectStore, Published, WeightStore, fetch
from rayswift.log import UserError
from rayswift.train.policy.sync.publish import Publisher
from tests.conftest import TINY

DIGIT = "[0-9]"
PROMPTS, PROMPT_TOKENS, ROOM, CHECKED = 8, 20, 200, 8
# Whatever leaves tokens out or makes some less likely; the one token that top_k 1 leaves can be foretold.
SAMPLING = {
    # Longer than there is room for: an answer that matches may end.
    True: SamplingSettings(0.8, top_p=0.9, top_k=7, min_p=0.02, structured_outputs_regex=f"{DIGIT}{{{ROOM + 1},}}"),
    False: SamplingSettings(1.3, top_k=1, repetition_penalty=1.3),
}
FIRST, SECOND = PolicyVersion(1, 0), PolicyVersion(1, 1)
SLOW_S, SILENCE_S = 5.0, 2.0
PLACES = 4


class Probed(VllmEngine):
    """An engine that can also be asked to fail at its start, and to have trouble with its next load."""

    trouble = ""

    async def start(self) -> None:
        """The second time, for the pool, it has started."""
        if not self._is_built:
            await super().start()

    async def have_trouble(self, what: str) -> None:
        """What becomes of the next load."""
        self.trouble = what

    async def load(self, version: PolicyVersion, weights: Published) -> float:
        """See Engine."""
        tensors = await fetch(weights, self._transport, 60)
        what, self.trouble = self.trouble, ""
        if what == "shape":  # vLLM stops in the midst
            info, data = tensors[len(tensors) // 2]
            tensors[len(tensors) // 2] = replace(info, shape=(1, *info.shape)), data
        elif what == "missing":  # all but one are in place
            del tensors[-1]

        def take_over(core: Any) -> float:
            time.sleep(SLOW_S if what == "slow" else 0)
            return core.load(weights, tensors)  # type: ignore[no-any-return]

        return await self._call(take_over)

    async def status(self) -> tuple[int, int]:
        """Requests in flight, and tokens made in all."""
        return await self._call(lambda core: (len(core._samples), core._num_tokens + sum(core._made())))

    async def fail_to_start(self) -> str:
        """What it says where its folder holds no model."""
        try:
            await VllmEngine(replace(self._setup, model=str(Path(self._setup.model).parent))).start()
        except UserError as error:
            return str(error)
        return ""


def policy(config: Any, seed: int) -> PreTrainedModel:
    """A model whose next tokens are neither certain nor all alike."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.07)
    return model


def requests(key: str) -> list[SampleRequest]:
    random = np.random.default_rng(0)
    prompts = random.integers(2, 500, (PROMPTS, PROMPT_TOKENS)).astype(np.int32)
    return [SampleRequest(f"{key}:{i}", prompt, ROOM, seed=i) for i, prompt in enumerate(prompts)]


def next_logits(model: PreTrainedModel, token_ids: np.ndarray) -> torch.Tensor:
    """The logits [T - 1, V] that tokens 1 to T - 1 of a text [T] are drawn by."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    return found


def text_logprobs(model: PreTrainedModel, token_ids: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [T - 1] of tokens 1 to T - 1 of a text [T]."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    logprobs = (next_logits(model, token_ids) / temperature).log_softmax(-1)
    found: np.ndarray = logprobs.gather(-1, ids[1:, None])[:, 0].numpy()
    return found


def text_of(request: SampleRequest, tokens: np.ndarray) -> np.ndarray:
    """Everything up to the end of a completion."""
    return np.concatenate([request.prompt_ids, request.begun, tokens])


def expected(model: PreTrainedModel, request: SampleRequest, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """What a model makes of the tokens behind a request's."""
    text = text_of(request, tokens)
    return text_logprobs(model, text, temperature)[len(text) - len(tokens) - 1 :]


def num_left_out(model: PreTrainedModel, request: SampleRequest, tokens: np.ndarray, wanted: SamplingSettings) -> int:
    """Tokens of a completion that the settings should have left out; borders as wide as float32 rounds."""
    text = text_of(request, tokens)
    begin, found = len(text) - len(tokens), 0
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    is_allowed = torch.ones(model.config.vocab_size, dtype=torch.bool)
    if wanted.structured_outputs_regex:
        pieces = tokenizer.batch_decode([[token] for token in range(model.config.vocab_size)])
        is_allowed = torch.tensor([bool(re.fullmatch(DIGIT, piece)) for piece in pieces])
    penalty = wanted.repetition_penalty
    for place, logits in enumerate(next_logits(model, text)[begin - 1 :], begin):
        seen = torch.from_numpy(np.unique(text[:place]).astype(np.int64))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        left = (logits / wanted.temperature).masked_fill(~is_allowed, -torch.inf)
        drawn, likeliest = left[text[place]], left.max()
        least = left.topk(wanted.top_k).values[-1]
        found += int(drawn < least - 1e-4 or drawn < likeliest + np.log(wanted.min_p or 1e-30) - 1e-4)
    return found


def error_of(
    asked: Sequence[SampleRequest],
    done: dict[str, Completion],
    models: dict[PolicyVersion, Any],
    temperature: float,
) -> float:
    """The largest difference between an engine's log-probabilities and those of the version behind each token.

    Relative to the log-probability where that is beyond -1: it is a difference of two numbers of about its size.
    """
    worst = 0.0
    for request in asked:
        completion = done[request.key]
        versions = np.zeros(len(completion.token_ids), int)
        for span in completion.spans:
            versions[span.begin :] = span.version.step
        for version, model in models.items():
            right = expected(model, request, completion.token_ids, temperature)
            difference = np.abs(right - completion.logprobs) / np.maximum(1, np.abs(right))
            worst = max(worst, float(difference[versions == version.step].max(initial=0)))
    return worst


async def sampling(engine: Any, asked: Sequence[SampleRequest]) -> None:
    """Submit requests, and wait for their first tokens; they have seconds of work before them."""
    _, before = await engine.status.remote()
    await engine.submit.remote(asked)
    while (await engine.status.remote())[1] == before:
        await asyncio.sleep(0.001)


async def collect(engine: Any, number: int) -> dict[str, Completion]:
    done: dict[str, Completion] = {}
    while len(done) < number:
        done |= {completion.key: completion for completion in (await engine.collect.remote(5, None)).finished}
    return done


async def refusal(call: Any) -> str:
    try:
        await call
    except ray.exceptions.RayTaskError as error:
        return type(error.cause).__name__
    return ""


async def story(engine: Any, store: Any, config: Any, wanted: SamplingSettings) -> dict[str, Any]:
    """One engine's life: no weights, the first, others while it samples, an abort, a continuation."""
    models = {FIRST: policy(config, 1), SECOND: policy(config, 2)}
    found: dict[str, Any] = {"unloaded": await refusal(engine.submit.remote(requests("early")))}

    async def publish(version: PolicyVersion) -> Any:
        published = Publisher(models[version], "float32", False, True, ObjectStore()).publish(version)
        return await store.keep.remote(published)  # the store's own objects: what a late engine gets

    first = await publish(FIRST)
    await engine.load.remote(FIRST, first)
    second = await publish(SECOND)
    asked = requests("flight")
    await sampling(engine, asked)
    found["pause_s"] = await engine.load.remote(SECOND, second)
    done = await collect(engine, PROMPTS)
    switched = [completion for completion in done.values() if len(completion.spans) == 2]
    found["switched"] = len(switched)
    found["flight"] = error_of(asked, done, models, wanted.temperature)
    found["finish"] = sorted({str(completion.finish) for completion in done.values()})
    found["stale"] = await refusal(engine.load.remote(FIRST, first))

    text = np.concatenate([asked[0].prompt_ids, done[asked[0].key].token_ids])[:64]
    asked = requests("abort")
    await sampling(engine, asked)
    # All places are taken, and as many requests wait: a text is scored all the same, or given up in time.
    scored = await engine.score.remote(text, 60)
    right = text_logprobs(models[SECOND], text, wanted.temperature)
    found["scored"] = float((np.abs(scored - right) / np.maximum(1, np.abs(right))).max())
    found["late"] = await refusal(engine.score.remote(text, 0))
    found["meanwhile"], _ = await engine.status.remote()
    parts = {part.key: part for part in await engine.abort.remote([request.key for request in asked])}
    found["aborted"] = [len(parts), sum(len(part.token_ids) for part in parts.values()) > 0]
    found["left"] = (await engine.status.remote())[0]
    going_on = [
        replace(request, key=f"{request.key}+", begun=parts[request.key].token_ids)
        for request in asked
        if 0 < len(parts[request.key].token_ids) < ROOM
    ]
    await engine.submit.remote(going_on)
    done = await collect(engine, len(going_on))
    found["continued"] = error_of(going_on, done, models, wanted.temperature)
    checked = [(each, done[each.key].token_ids[:CHECKED]) for each in going_on]
    found["left_out"] = sum(num_left_out(models[SECOND], *each, wanted) for each in checked)
    whole = {len(each.begun) + len(done[each.key].token_ids) for each in going_on}
    found["whole"] = whole == {ROOM}
    found["cannot_start"] = await engine.fail_to_start.remote()
    return found


async def troubled(engine: Any, config: Any, wanted: SamplingSettings) -> dict[str, Any]:
    """In a pool, under requests: a load that takes longer than the engine may be silent, loads that fail once."""
    limits = Limits(suspect_s=1, dead_s=SILENCE_S, answer_s=SILENCE_S)
    troubles = ["", "slow", "shape", "missing"]
    models = {PolicyVersion(2, step): policy(config, step) for step in range(len(troubles))}
    publications = [
        Publisher(model, "float32", False, True, ObjectStore()).publish(version) for version, model in models.items()
    ]
    pool = Pool(lambda name: ActorEngine(engine), limits, resume_partial=True)
    pool.scale_to(1)
    answers, seconds = [], {}
    for step, (what, published) in enumerate(zip(troubles, publications, strict=True)):
        asked, before = requests(what), (await engine.status.remote())[1]
        futures = pool.sample(asked, max(0, step - 1))
        while step and (await engine.status.remote())[1] == before:
            await asyncio.sleep(0.001)
        await engine.have_trouble.remote(what)
        began = time.monotonic()
        await pool.set_weights(published.version, published)
        seconds[what] = time.monotonic() - began
        done = {completion.key: completion for completion in await asyncio.gather(*futures)}
        assert step == 0 or any(len(completion.spans) > 1 for completion in done.values()), "none was in flight"
        answers.append((asked, done))
    stands = pool.statistics()
    await pool.close()
    return {
        "errors": [error_of(asked, done, models, wanted.temperature) for asked, done in answers],
        "seconds": seconds,
        "lost": stands.lost,
        "failed": stands.failed,
        "requests": stands.requests,
        "resumed": stands.resumed_tokens,
        "regenerated": stands.regenerated_tokens,
    }


async def main(folder: Path) -> None:
    """Start both engines at once, and print what came of them."""
    engines = []
    for tied in (True, False):
        config = AutoConfig.from_pretrained(TINY)
        config.tie_word_embeddings, config.eos_token_id = tied, None  # each completion fills its room
        config.save_pretrained(folder / str(tied))
        wanted = SAMPLING[tied]
        tokenizer = str(TINY) if wanted.structured_outputs_regex else None
        window = PROMPT_TOKENS + ROOM
        setup = EngineSetup(str(folder / str(tied)), wanted, window, tokenizer=tokenizer, max_num_seqs=PLACES)
        engines.append((ray.remote(Probed).options(**engine_options({})).remote(setup), config, wanted))
    await asyncio.gather(*(engine.start.remote() for engine, *_ in engines))
    found = []
    for engine, *described in engines:
        store = ray.remote(WeightStore).options(num_cpus=0).remote()
        found.append(await story(engine, store, *described))
        found[-1]["troubled"] = await troubled(engine, *described)  # its pool ends the engine
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    asyncio.run(asyncio.wait_for(main(Path(sys.argv[1])), 400))
    ray.shutdown()
