"""A teacher in vLLM's own server: its scores compared with transformers, and a run of gkd that learns from it.

Minutes, so not part of the suite: pytest tests/bars/test_teacher_server.py
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from rayswift.engines.samples import Completion, Prompt
from rayswift.rollout.teachers.server import ServerTeacher
from tests.ray.conftest import ROOT, curve, train

TOP = 16
TINY = ROOT / "examples" / "tiny"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the tiny vocabulary."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)
    return folder


@pytest.fixture(scope="module")
def url(teacher: Path) -> Iterator[str]:
    """A server that holds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    # `vllm serve` as its module: the command looks for a package of that name, which is vllm-cpu here.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher), "--port", str(port)]
    command += ["--max-logprobs", str(TOP), "--enforce-eager"]
    command += ["--dtype", "float32", "--max-model-len", "64", "--kv-cache-memory-bytes", str(64 << 20)]
    server = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, server.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=60)


def test_a_server_scores_token_ids_as_transformers_does(teacher: Path, url: str) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(6, 500, length).astype(np.int32) for length in (9, 20, 4)]
    encode = Tokenizer.from_file(str(teacher / "tokenizer.json"))

    async def score() -> list[Completion | str]:
        server = ServerTeacher(url, TOP, 60.0)
        await server.start(lambda text: encode.encode(text, add_special_tokens=False).ids)
        found = []
        for number, row in enumerate(rows):
            asked = Completion(str(number), row[3:], np.zeros(len(row) - 3, np.float32), (), "stop")
            found += await server.score(Prompt(number, "", 0, row[:3], (), {}), [asked, asked])
        await server.close()
        return found

    found = asyncio.run(score())
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    for each, row in zip(found, [row for row in rows for _ in range(2)], strict=True):
        assert isinstance(each, Completion), each
        ids = torch.from_numpy(row.astype(np.int64))
        wanted = model(ids[None]).logits[0, 2:-1].log_softmax(-1)
        best = wanted.topk(TOP, dim=-1)
        assert each.top is not None
        chosen = wanted.gather(-1, ids[3:, None])[:, 0]
        np.testing.assert_allclose(each.logprobs, chosen.detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(each.top.logprobs, best.values.detach().numpy(), atol=1e-5)


def test_a_run_of_gkd_learns_from_a_server(url: str, run_dir: Path) -> None:
    """By ms-swift's flags."""
    train(
        "rlhf", run_dir, "--rlhf_type", "gkd", "--model", "examples/tiny", "--random_init",
        "--teacher_model_server", url, "--gkd_logits_topk", str(TOP), "--lmbda", "0.5",
        "--data.dataset", "examples/sums/train.jsonl", "--max_prompt_length", "32", "--max_completion_length", "12",
        "--global_batch_size", "32", "--max_steps", "6", "--save_steps", "6", "--learning_rate", "1e-3",
        "--logging_steps", "1", "--gradient_checkpointing", "false", "--report_to", "none", "--timeout_s", "120",
        "--threads_per_worker", "1", "--num_workers", "1",
        "--engine_kwargs", '{"enforce_eager": true, "kv_cache_memory_bytes": 67108864}',
    )  # fmt: skip
    losses = curve(run_dir, "loss")
    assert losses[6] < losses[1]
    assert set(curve(run_dir, "distillation/teacher_mass")) == set(losses)
