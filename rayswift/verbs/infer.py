"""`rayswift infer`: prompts -> answers of a run, a checkpoint or a model.

    rayswift infer --model runs/demo --prompt "23+58=" "1+1="

Both backends get the same token ids and stop tokens, so their greedy answers are equal.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rayswift.config.load import Invocation, to_yaml
from rayswift.config.schema import InferSection
from rayswift.engines.engine import SamplingSettings
from rayswift.engines.samples import PolicyVersion, SampleRequest
from rayswift.engines.vllm.setup import INSTALL_VLLM, EngineSetup, adapter_obstacles
from rayswift.log import UserError, logger, refuse
from rayswift.model import whole
from rayswift.model.adapters import served_config
from rayswift.model.find import FoundModel, find_model, load_tokenizer, prompt_ids, stop_token_ids
from rayswift.model.kind import abilities
from rayswift.model.kind.kinds import NOTHING_KNOWN, look, num_positions
from rayswift.model.load import resolve_dtype

_INSTALL = {"vllm": INSTALL_VLLM, "transformers": "pip install transformers"}


@dataclass(frozen=True)
class Request:
    """The input of a backend; prompts and stop tokens are token ids."""

    prompts: list[list[int]]
    max_new_tokens: list[int]
    stop_token_ids: list[int]
    temperature: float
    seed: int
    trust_remote_code: bool = False


def run(invocation: Invocation) -> None:
    """Print the answer to each prompt on stdout; raise UserError for a wrong model, backend or prompt."""
    section: InferSection = invocation.config.infer
    transformers_logging.disable_progress_bar()
    model = _found(section, fetch=not invocation.dry_run)
    backend = choose_backend(section.backend, served_config(model.folder) if model.adapter else {})
    if invocation.dry_run:
        print(to_yaml(invocation.config))  # noqa: T201
        print(f"{model} would answer {len(section.prompt)} prompt(s) with {backend}")  # noqa: T201
        return
    tokenizer = load_tokenizer(model, section.trust_remote_code)
    request = encode(section, model, tokenizer)
    logger.info("%s answers with %s", model, backend)
    for prompt, answer in zip(section.prompt, ask(backend, model, request), strict=True):
        print(f"> {prompt}\n{tokenizer.decode(answer, skip_special_tokens=True)}")  # noqa: T201


def _found(section: InferSection, fetch: bool = True) -> FoundModel:
    """The model; raise UserError if it does not exist or does not generate text."""
    given = look(section.model)
    is_judged = given is not None and given.kind != "adapter" and given.what != NOTHING_KNOWN
    refuse(abilities.problems("infer.model", section.model, "infer") if is_judged else [])
    model = find_model(section.model, "infer.model", fetch, section.base)
    head = model.adapter.get("task_type", "CAUSAL_LM")
    if head != "CAUSAL_LM" and model.adapter:
        raise UserError(
            f"infer.model = {section.model!r} is an adapter of {head}, which does not write; it scores or embeds texts"
        )
    refuse(abilities.problems("infer.model", str(model.weights), "infer"))
    return model


def ask(backend: str, model: FoundModel, request: Request) -> list[list[int]]:
    """The answer to each prompt as token ids, with the stop token."""
    with _contained():
        return BACKENDS[backend](model, request)


def choose_backend(wanted: str, adapter: dict[str, Any]) -> str:
    """The backend for a model; raise UserError if it is not installed or cannot load the adapter (empty: none)."""
    obstacles = adapter_obstacles(adapter) if adapter else []
    if wanted == "auto":
        if obstacles and find_spec("vllm"):
            logger.info("vLLM cannot load an adapter with %s", ", ".join(obstacles))
        return "vllm" if find_spec("vllm") and not obstacles else "transformers"
    if find_spec(wanted) is None:
        raise UserError(f"infer.backend = {wanted!r} is not installed; {_INSTALL[wanted]}")
    if wanted == "vllm" and obstacles:
        raise UserError(
            f"infer.backend = 'vllm' cannot load an adapter with {', '.join(obstacles)}; "
            "use --backend transformers, or merge it with rayswift export --merge_lora"
        )
    return wanted


def encode(section: InferSection, model: FoundModel, tokenizer: PreTrainedTokenizerBase) -> Request:
    """Token ids of the prompts, rendered by the chat template if there is one; raise UserError if one is too long."""
    prompts = [prompt_ids(tokenizer, prompt, section.system) for prompt in section.prompt]
    try:
        found = AutoConfig.from_pretrained(model.weights, trust_remote_code=section.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{model.weights} cannot be loaded: {whole.why(error)}") from error
    context = num_positions(found.get_text_config().to_dict()) or sys.maxsize
    for prompt, ids in zip(section.prompt, prompts, strict=True):
        if not 0 < len(ids) < context:
            limits = f"the model takes 1 to {context - 1}"
            raise UserError(f"infer.prompt {prompt[:40]!r} is {len(ids)} tokens; {limits}")
    rooms = [min(section.max_new_tokens, context - len(ids)) for ids in prompts]
    stops = stop_token_ids(model, tokenizer)
    return Request(prompts, rooms, stops, section.temperature, section.seed, section.trust_remote_code)


def answer_with_transformers(model: FoundModel, request: Request) -> list[list[int]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, resolve_dtype("auto", device))
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": request.trust_remote_code}
    network, _ = whole.load(AutoModelForCausalLM, str(model.weights), **options)
    if model.adapter:
        network = whole.put_on(network, model.folder)
    network = network.to(device).eval()
    # Ignore the model's generation config (top_p, penalties, ...), as the other backend does.
    network.generation_config = GenerationConfig()
    # `transformers` does not accept a temperature of 0, and its default `top_k` is 50.
    sampling: dict[str, Any] = {"do_sample": False}
    if request.temperature:
        sampling = {"do_sample": True, "temperature": request.temperature, "top_k": 0}
    answers = []
    for number, (ids, room) in enumerate(zip(request.prompts, request.max_new_tokens, strict=True)):
        torch.manual_seed(request.seed + number)
        tokens = network.generate(
            input_ids=torch.tensor([ids], device=device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
            max_new_tokens=room,
            eos_token_id=request.stop_token_ids or None,
            pad_token_id=0,  # unused with one prompt, but without it there is a warning
            use_cache=True,
            **sampling,
        )
        answers.append(tokens[0, len(ids) :].tolist())
    return answers


def answer_with_vllm(model: FoundModel, request: Request) -> list[list[int]]:
    from rayswift.engines.vllm.core import VllmCore

    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = [len(ids) + room for ids, room in zip(request.prompts, request.max_new_tokens, strict=True)]
    setup = EngineSetup(
        model=str(model.weights),
        sampling=SamplingSettings(request.temperature, stop_token_ids=tuple(request.stop_token_ids)),
        max_model_len=max(lengths),
        device=device,
        dtype=resolve_dtype("auto", device),
        load_format="auto",
        trust_remote_code=request.trust_remote_code,
        lora_rank=model.adapter["r"] if model.adapter else None,
        adapter=str(model.folder) if model.adapter else None,
        num_threads=torch.get_num_threads(),
    )
    samples = [
        SampleRequest(str(number), np.array(ids, np.int32), room, request.seed + number)
        for number, (ids, room) in enumerate(zip(request.prompts, request.max_new_tokens, strict=True))
    ]
    core = VllmCore(setup)
    try:
        core.serve_own_weights(PolicyVersion(0, 0))
        core.submit(samples)
        while core.busy:
            core.step()
        answers = {completion.key: completion.token_ids.tolist() for completion in core.take(False).finished}
    finally:
        core.close()
    return [answers[sample.key] for sample in samples]


BACKENDS: dict[str, Callable[[FoundModel, Request], list[list[int]]]] = {
    "vllm": answer_with_vllm,
    "transformers": answer_with_transformers,
}


@contextmanager
def _contained() -> Iterator[None]:
    """Send all output of engines to stderr, and undo their changes of the process."""
    # C++ code and child processes write to descriptor 1; vLLM on CPU replaces `torch.set_num_threads` by a stub.
    environment, set_num_threads, stdout = dict(os.environ), torch.set_num_threads, os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
        torch.set_num_threads = set_num_threads
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ |= environment
