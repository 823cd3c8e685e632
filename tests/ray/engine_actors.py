"""Two real vLLM engines in actors, tied and untied: what `test_engine.py` looks at, as one line of JSON.

python -m tests.ray.engine_actors FOLDER
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rayswift.log import UserError
from rayswift.rollout.actors import ActorEngine
from rayswift.rollout.engine import SamplingSettings
from rayswift.rollout.engine_setup import EngineSetup, engine_options
from rayswift.rollout.patience import Limits
from rayswift.rollout.pool import Pool
from rayswift.rollout.samples import Completion, PolicyVersion, SampleRequest
from rayswift.rollout.vllm_engine import VllmEngine
from rayswift.rollout.weights import ObjectStore, Published, WeightStore, fetch
from rayswift.train.policy.publish import Publisher
from tests.conftest import TINY

FIRST, SECOND = PolicyVersion(1, 0), PolicyVersion(1, 1)
PROMPTS, PROMPT_TOKENS, ROOM = 8, 20, 400
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

    async def fail_to_start(self) -> str:
        try:
            await VllmEngine(replace(self._setup, model=f"{self._setup.model}/nothing")).start()
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


def text_logprobs(model: PreTrainedModel, token_ids: np.ndarray) -> np.ndarray:
    """Log-probabilities [T - 1] of tokens 1 to T - 1 of a text [T]."""
    ids = torch.from_numpy(token_ids.astype(np.int64))
    with torch.no_grad():
        logprobs = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    found: np.ndarray = logprobs.gather(-1, ids[1:, None])[:, 0].numpy()
    return found


def expected(model: PreTrainedModel, request: SampleRequest, tokens: np.ndarray) -> np.ndarray:
    """What a model makes of the tokens behind a request's."""
    text = np.concatenate([request.prompt_ids, request.begun, tokens])
    return text_logprobs(model, text)[len(text) - len(tokens) - 1 :]


def error_of(asked: Sequence[SampleRequest], done: dict[str, Completion], models: dict[PolicyVersion, Any]) -> float:
    """The largest difference between an engine's log-probabilities and those of the version behind each token."""
    worst = 0.0
    for request in asked:
        completion = done[request.key]
        versions = np.zeros(len(completion.token_ids), int)
        for span in completion.spans:
            versions[span.begin :] = span.version.step
        for version, model in models.items():
            difference = np.abs(expected(model, request, completion.token_ids) - completion.logprobs)
            worst = max(worst, float(difference[versions == version.step].max(initial=0)))
    return worst


async def sampling(engine: Any, asked: Sequence[SampleRequest]) -> None:
    """Submit requests, and wait for their first tokens; they have seconds of work before them."""
    before = (await engine.status.remote()).tokens
    await engine.submit.remote(asked)
    while (await engine.status.remote()).tokens == before:
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


async def story(engine: Any, store: Any, config: Any) -> dict[str, Any]:
    """One engine's life: no weights, the first, others while it samples, an abort, a continuation."""
    models = {FIRST: policy(config, 1), SECOND: policy(config, 2)}
    found: dict[str, Any] = {"unloaded": await refusal(engine.submit.remote(requests("early")))}

    async def publish(version: PolicyVersion) -> Any:
        published = Publisher(models[version], "float32", False, True, ObjectStore()).publish(version)
        await store.publish.remote(published)
        assert await store.settled.remote()
        return await store.current.remote()  # the store's own objects: what a late engine gets

    first = await publish(FIRST)
    await engine.load.remote(FIRST, first)
    second = await publish(SECOND)
    asked = requests("flight")
    await sampling(engine, asked)
    found["pause_s"] = await engine.load.remote(SECOND, second)
    done = await collect(engine, PROMPTS)
    switched = [completion for completion in done.values() if len(completion.spans) == 2]
    found["switched"] = len(switched)
    found["flight"] = error_of(asked, done, models)
    found["finish"] = sorted({str(completion.finish) for completion in done.values()})
    found["stale"] = await refusal(engine.load.remote(FIRST, first))

    text = np.concatenate([asked[0].prompt_ids, done[asked[0].key].token_ids])[:64]
    asked = requests("abort")
    await sampling(engine, asked)
    # All places are taken, and as many requests wait: a text is scored all the same, or given up in time.
    scored = await engine.score.remote(text, 60)
    found["scored"] = float(np.abs(scored - text_logprobs(models[SECOND], text)).max())
    found["late"] = await refusal(engine.score.remote(text, 0))
    status = await engine.status.remote()
    found["meanwhile"] = [status.running, status.waiting]
    parts = {part.key: part for part in await engine.abort.remote([request.key for request in asked])}
    found["aborted"] = [len(parts), sum(len(part.token_ids) for part in parts.values()) > 0]
    found["left"] = (await engine.status.remote()).running
    going_on = [
        replace(request, key=f"{request.key}+", begun=parts[request.key].token_ids)
        for request in asked
        if 0 < len(parts[request.key].token_ids) < ROOM
    ]
    await engine.submit.remote(going_on)
    done = await collect(engine, len(going_on))
    found["continued"] = error_of(going_on, done, models)
    whole = {len(each.begun) + len(done[each.key].token_ids) for each in going_on}
    found["whole"] = sorted(whole)
    found["cannot_start"] = await engine.fail_to_start.remote()
    return found


async def troubled(engine: Any, config: Any) -> dict[str, Any]:
    """In a pool, under requests: a load that takes longer than the engine may be silent, loads that fail once."""
    limits = Limits(suspect_s=1, dead_s=SILENCE_S, answer_s=SILENCE_S)
    pool = Pool(lambda name: ActorEngine(engine), limits, salvage=True)
    pool.scale_to(1)
    models: dict[PolicyVersion, Any] = {}
    errors, seconds = [], {}
    for step, what in enumerate(["", "slow", "shape", "missing"]):
        version = PolicyVersion(2, step)
        models[version] = policy(config, step)
        published = Publisher(models[version], "float32", False, True, ObjectStore()).publish(version)
        asked, before = requests(what), (await engine.status.remote()).tokens
        futures = pool.sample(asked, max(0, step - 1))
        while step and (await engine.status.remote()).tokens == before:
            await asyncio.sleep(0.001)
        await engine.have_trouble.remote(what)
        began = time.monotonic()
        await pool.set_weights(version, published)
        seconds[what] = time.monotonic() - began
        done = {completion.key: completion for completion in await asyncio.gather(*futures)}
        assert step == 0 or any(len(completion.spans) > 1 for completion in done.values()), "none was in flight"
        errors.append(error_of(asked, done, models))
    stands = pool.statistics()
    await pool.close()
    return {
        "errors": errors,
        "seconds": seconds,
        "lost": stands.lost,
        "failed": stands.failed,
        "requests": stands.requests,
        "salvaged": stands.salvaged_tokens,
        "regenerated": stands.regenerated_tokens,
    }


async def main(folder: Path) -> None:
    """Start both engines at once, and print what came of them."""
    engines = []
    for tied in (True, False):
        config = AutoConfig.from_pretrained(TINY)
        config.tie_word_embeddings, config.eos_token_id = tied, None  # each completion fills its room
        config.save_pretrained(folder / str(tied))
        setup = EngineSetup(str(folder / str(tied)), SamplingSettings(1.0), PROMPT_TOKENS + ROOM, max_num_seqs=PLACES)
        engines.append((ray.remote(Probed).options(**engine_options({})).remote(setup), config))
    await asyncio.gather(*(engine.start.remote() for engine, _ in engines))
    found = []
    for engine, config in engines:
        store = ray.remote(WeightStore).options(num_cpus=0).remote(60)
        found.append(await story(engine, store, config))
        found[-1]["troubled"] = await troubled(engine, config)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    asyncio.run(asyncio.wait_for(main(Path(sys.argv[1])), 400))
    ray.shutdown()
