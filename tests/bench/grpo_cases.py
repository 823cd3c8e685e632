"""The contestants of `grpo_step`: each trains a scene for some steps in this process and tells the seconds of each.

The bare loop is vLLM in-process and plain torch, without any framework; TRL's trainer generates with its own model.
"""

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
PER_PROMPT, THREADS, LEARNING_RATE, TEMPERATURE = 8, 2, 2e-4, 1.0


@dataclass(frozen=True)
class Scene:
    """What is trained.

    model: folder of the policy. rows: JSON lines with messages and answer. prompts: of a step, with `PER_PROMPT`
    completions each. room: most tokens of a prompt, and of a completion. micro_tokens: of a micro-batch, padding
    included.
    """

    model: str
    rows: str
    prompts: int
    room: tuple[int, int]
    micro_tokens: int

    def asked(self, steps: int) -> list[dict[str, Any]]:
        """The rows of so many steps, from the beginning again where there are too few."""
        rows = [json.loads(line) for line in Path(self.rows).read_text().splitlines()]
        return list(itertools.islice(itertools.cycle(rows), self.prompts * steps))

    @property
    def micro_rows(self) -> int:
        """Completions of a micro-batch, for contestants that cut by rows; a divisor of a step's."""
        size, most = self.prompts * PER_PROMPT, max(1, self.micro_tokens // sum(self.room))
        return max(rows for rows in range(1, most + 1) if size % rows == 0)


def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """As TRL and RaySwift call it: 1 where the last word is the answer."""
    texts = [each[-1]["content"].split() for each in completions]
    return [float(bool(words) and words[-1] == wanted) for words, wanted in zip(texts, answer, strict=True)]


class _InPlace:
    """Weights that stay where they are; see `weights.Transport`."""

    def send(self, tensors: Any) -> Any:
        return tensors

    async def receive(self, handle: Any) -> Any:
        return handle


class BareLoop:
    """See above; weights go from one to the other in memory."""

    def __init__(self, scene: Scene):
        from rayswift.engines.engine import SamplingSettings
        from rayswift.engines.vllm.core import VllmCore
        from rayswift.engines.vllm.setup import EngineSetup

        self._scene = scene
        end = json.loads(Path(scene.model, "config.json").read_text())["eos_token_id"]
        sampling = SamplingSettings(TEMPERATURE, stop_token_ids=(end,))
        size = scene.prompts * PER_PROMPT
        setup = EngineSetup(scene.model, sampling, sum(scene.room), num_threads=THREADS, max_num_seqs=size)
        self._core = VllmCore(setup)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from rayswift.train.policy.sync.publish import Publisher

        torch.set_num_threads(THREADS)
        self._model = AutoModelForCausalLM.from_pretrained(scene.model, dtype=torch.float32)
        self._tokenizer = AutoTokenizer.from_pretrained(scene.model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True)
        self._publisher = Publisher(self._model, "float32", False, True, _InPlace())

    def run(self, steps: int) -> list[float]:
        """Seconds of each step."""
        rows, times = self._scene.asked(steps), []
        chats = [row["messages"] for row in rows]
        encoded = self._tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)
        prompts = [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        for step in range(steps):
            began = time.perf_counter()
            chosen = range(step * self._scene.prompts, (step + 1) * self._scene.prompts)
            completions = self._sample(step, [prompts[i] for i in chosen])
            texts = self._tokenizer.batch_decode(completions, skip_special_tokens=True)
            answers = [rows[i]["answer"] for i in chosen for _ in range(PER_PROMPT)]
            self._train(
                [prompts[i] for i in chosen for _ in range(PER_PROMPT)],
                completions,
                right([[{"content": text}] for text in texts], answers),
            )
            times.append(time.perf_counter() - began)
        self._core.close()
        return times

    def _sample(self, step: int, prompts: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
        from rayswift.engines.samples import PolicyVersion, SampleRequest
        from rayswift.engines.weights import fetch

        published = self._publisher.publish(PolicyVersion(1, step))
        assert published is not None
        self._core.load(published, asyncio.run(fetch(published, _InPlace(), 60)))
        keys = [(i, n) for i in range(len(prompts)) for n in range(PER_PROMPT)]
        self._core.submit(
            [
                SampleRequest(f"{i}:{n}", prompts[i], self._scene.room[1], seed=(step << 20) + i * PER_PROMPT + n)
                for i, n in keys
            ]
        )
        while self._core.busy:
            self._core.step()
        made = {each.key: each.token_ids for each in self._core.take(None).finished}
        return [made[f"{i}:{n}"] for i, n in keys]

    def _train(
        self, prompts: list[NDArray[np.int32]], completions: list[NDArray[np.int32]], rewards: list[float]
    ) -> None:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        groups = torch.tensor(rewards).view(-1, PER_PROMPT)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        total, rows = sum(map(len, completions)), self._scene.micro_rows
        for begin in range(0, len(completions), rows):
            part = range(begin, min(begin + rows, len(completions)))
            joined = [torch.from_numpy(np.concatenate([prompts[i], completions[i]]).astype(np.int64)) for i in part]
            ids = pad_sequence(joined, batch_first=True)
            counted = torch.zeros(ids.shape, dtype=torch.bool)
            for row, i in enumerate(part):
                counted[row, len(prompts[i]) : len(prompts[i]) + len(completions[i])] = True
            logprobs = self._model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
            chosen = logprobs.gather(-1, ids[:, 1:, None])[..., 0]
            ratio = (chosen - chosen.detach()).exp()
            loss = -(ratio * advantages[part.start : part.stop, None])[counted[:, 1:]].sum() / total
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def trl(scene: Scene, steps: int) -> list[float]:
    """TRL's trainer."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(THREADS)
    begun: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            begun.append(time.perf_counter())

    rows = [{"prompt": row["messages"], "answer": row["answer"]} for row in scene.asked(steps)]
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=scene.micro_rows,
            gradient_accumulation_steps=scene.prompts * PER_PROMPT // scene.micro_rows, num_generations=PER_PROMPT,
            max_completion_length=scene.room[1], learning_rate=LEARNING_RATE, lr_scheduler_type="constant", beta=0.0,
            temperature=TEMPERATURE, use_cpu=True, bf16=False, report_to="none", logging_steps=1, save_strategy="no",
            gradient_checkpointing=False, disable_tqdm=True, loss_type="dapo",
        )  # fmt: skip
        dataset = Dataset.from_list(rows)
        GRPOTrainer(scene.model, right, args=args, train_dataset=dataset, callbacks=[Clock()]).train()
    return [after - before for before, after in itertools.pairwise(begun)]


def rayswift(scene: Scene, steps: int) -> list[float]:
    """The command line: one worker and one engine, on-policy."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "rlhf_type": "grpo", "model": scene.model, "data.dataset": scene.rows, "num_generations": PER_PROMPT,
            "reward_funcs": f"{__file__}:right", "max_prompt_length": scene.room[0],
            "max_completion_length": scene.room[1], "global_batch_size": scene.prompts * PER_PROMPT,
            "max_steps": steps, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "logging_steps": 1,
            "save_strategy": "no", "report_to": "none", "gradient_checkpointing": "false", "num_workers": 1,
            "zero_stage": 0, "threads_per_worker": THREADS, "engine_threads": THREADS, "temperature": TEMPERATURE,
            "max_num_seqs": scene.prompts * PER_PROMPT,
            "micro_batch_tokens": scene.micro_tokens, "canary_steps": 0, "train.output_dir": f"{folder}/run",
        }  # fmt: skip
        command = [sys.executable, "-m", "rayswift", "rlhf", *(str(x) for k, v in flags.items() for x in (f"--{k}", v))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        entries = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        return [entry["step_s"] for entry in entries if "loss" in entry]


CASES = {"bare loop": lambda scene, steps: BareLoop(scene).run(steps), "RaySwift": rayswift, "TRL GRPOTrainer": trl}


def main() -> None:
    """CASE SCENE STEPS: print the seconds of each step as JSON."""
    case, scene, steps = sys.argv[1:]
    print(json.dumps(CASES[case](Scene(**json.loads(scene)), int(steps))))  # noqa: T201


if __name__ == "__main__":
    main()
