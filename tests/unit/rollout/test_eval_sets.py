"""Named evaluations: their prompts, sampling settings, metrics and kept completions."""

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayswift.config.checks.online import online_problems
from rayswift.config.load import load
from rayswift.engines.samples import Completion, PolicyVersion, Prompt, RequestSampling, SampleRequest, Scored, Span
from rayswift.engines.serialization import Requests
from rayswift.launch.rollout_supply import rollout_plan
from rayswift.log import UserError
from rayswift.rollout.completions import CompletionsFile, newest_evaluated
from rayswift.rollout.evaluation import Evaluated, evaluated

FLAGS = ["--model", "m", "--dataset", "d.jsonl", "--train.task", "grpo", "--reward_funcs", "format"]
SETS = '{"greedy": {"temperature": 0}, "hard": {"num_generations": 4, "top_p": 0.9, "sources": "hard.jsonl#9"}}'
PROMPTS = [
    Prompt(n, f"/data/{file}:{n}", 0, np.arange(4, dtype=np.int32), ({"role": "user", "content": f"q{n}"},), {})
    for n, file in enumerate(["easy.jsonl", "easy.jsonl", "hard.jsonl", "hard.jsonl"])
]


class Sampler:
    """Answers each request at once."""

    def __init__(self) -> None:
        self.requests: list[SampleRequest] = []

    def sample(self, requests: Sequence[SampleRequest], min_step: int) -> list[asyncio.Future[Completion]]:
        self.requests += requests
        found = []
        for request in requests:
            future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            tokens = np.ones(3, np.int32)
            future.set_result(
                Completion(
                    request.key, tokens, tokens.astype(np.float32), (Span(0, PolicyVersion(1, min_step)),), "stop"
                )
            )
            found.append(future)
        return found


class Scorer:
    """Of prompt n the first n completions are right; one of prompt 1's has no reward."""

    names = ("right",)

    async def score(self, prompt: Prompt, completions: Sequence[Completion], *_: Any) -> Sequence[Scored | str]:
        rewards = [float(number < prompt.ordinal) for number in range(len(completions))]
        return [Scored(each, (reward,), reward, "said") for each, reward in zip(completions, rewards, strict=True)]


def evaluation(*flags: str, prompts: Sequence[Prompt] = PROMPTS) -> tuple[Evaluated, list[SampleRequest]]:
    config = load(
        "rlhf", [*FLAGS, "--data.eval", "easy.jsonl", "hard.jsonl#9", "--global_batch_size", "8", *flags]
    ).config
    assert online_problems(config) == []
    sampler = Sampler()

    async def run() -> Evaluated:
        return await evaluated(prompts, 3, rollout_plan(config), sampler, Scorer(), lambda where, change: None)

    return asyncio.run(run()), sampler.requests


def test_each_set_has_prompts_and_sampling_of_its_own() -> None:
    found, requests = evaluation("--rollout.eval", SETS, "--rollout.temperature", "0.7", "--rollout.top_k", "5")
    samplings = {(each.key.split(":")[0], each.sampling) for each in requests}
    assert samplings == {
        ("eval.greedy", RequestSampling(0.0, 1.0, 5)),
        ("eval.hard", RequestSampling(0.7, 0.9, 5)),
    }
    assert len({each.key for each in requests}) == len(requests) == 4 + 2 * 4
    assert {name: [group.prompt.ordinal for group in groups] for name, groups in found.groups.items()} == {
        "greedy": [0, 1, 2, 3],
        "hard": [2, 3],
    }
    metrics = found.metrics
    # of prompts 0 to 3 one completion each, right but for prompt 0; of prompts 2 and 3 four, of which 2 and 3 are right
    assert metrics["greedy_reward"] == metrics["greedy_avg@1"] == metrics["greedy_pass@1"] == 0.75
    assert metrics["hard_avg@4"] == pytest.approx(5 / 8)
    assert metrics["hard_pass@4"] == 1.0
    assert metrics["reward"] == 0.75
    assert metrics["completions"] == 12


def test_a_completion_is_right_from_a_reward_on() -> None:
    sets = '{"strict": {"num_generations": 2, "right_from": 1.5}, "mild": {"num_generations": 2, "right_from": 0.5}}'
    metrics = evaluation("--rollout.eval", sets)[0].metrics
    assert (metrics["strict_pass@2"], metrics["mild_pass@2"]) == (0.0, 0.75)


def test_without_names_it_samples_as_training_does() -> None:
    found, requests = evaluation("--num_generations_eval", "2")
    assert {each.sampling for each in requests} == {None}
    assert {each.key.split(":")[0] for each in requests} == {"eval"}
    assert list(found.groups) == [""]
    assert not any("@" in name for name in found.metrics)


def test_a_reward_without_an_opinion_has_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 would be one; training leaves it out too."""

    async def score(self: Any, prompt: Prompt, completions: Sequence[Completion], *_: Any) -> Sequence[Scored | str]:
        return [Scored(each, (float(prompt.ordinal), float("nan")), 1.0, "said") for each in completions]

    monkeypatch.setattr(Scorer, "names", ("right", "silent"))
    monkeypatch.setattr(Scorer, "score", score)
    metrics = evaluation("--num_generations_eval", "2")[0].metrics
    assert {name: value for name, value in metrics.items() if "rewards/" in name} == {"rewards/right/mean": 1.5}


def test_a_set_without_prompts_ends_the_run() -> None:
    with pytest.raises(UserError, match=r"no evaluation prompt of rollout.eval.hard could be scored: its sources"):
        evaluation("--rollout.eval", SETS, prompts=PROMPTS[:2])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rollout.eval", '{"a": {}}'], "rollout.eval has no prompts; set data.eval"),
        (["--data.eval", "e.jsonl", "--rollout.eval", '{"a b": {}}'], "'a b' becomes part of metrics' names"),
        (
            ["--data.eval", "e.jsonl", "--rollout.eval", '{"a": {"sources": ["f.jsonl"]}}'],
            "rollout.eval.a.sources = 'f.jsonl' is not in data.eval; it has e.jsonl",
        ),
        (
            ["--data.eval", "e.jsonl", "--rollout.eval", '{"a": {}}', "--num_generations_eval", "3"],
            "num_generations of its own",
        ),
    ],
)
def test_what_cannot_be_evaluated(flags: list[str], said: str) -> None:
    config = load("rlhf", [*FLAGS, *flags]).config
    assert any(said in line for line in online_problems(config))


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(UserError, match=r"rollout\.eval\.a\.heat = 0"):
        load("rlhf", [*FLAGS, "--rollout.eval", '{"a": {"heat": 0}}'])


def test_sampling_of_its_own_travels_with_a_request() -> None:
    own = RequestSampling(0.0, 1.0, -1)
    prompt = np.arange(3, dtype=np.int32)
    sent = Requests([SampleRequest("a", prompt, 4, 1, sampling=own), SampleRequest("b", prompt, 4, 2)])
    assert [each.sampling for each in pickle.loads(pickle.dumps(sent))] == [own, None]


def test_completions_of_evaluations_are_kept_by_round(tmp_path: Path) -> None:
    found, _ = evaluation("--rollout.eval", SETS)
    file = CompletionsFile(tmp_path, Scorer.names, str)
    for number in (2, 4):
        file.add_evaluation(number, found.groups)
    rows = newest_evaluated(tmp_path, 3)
    assert {row["round"] for row in rows} == {4}
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0]
    whole = pq.read_table(tmp_path / "completions/eval/round-00000002.parquet").to_pylist()
    assert [row["outcome"] for row in whole] == ["greedy"] * 4 + ["hard"] * 8
    assert whole[0]["prompt"] == "q0" and whole[0]["completion"] == "said"
    file.begin(3)  # what is evaluated from here on is another life's
    assert newest_evaluated(tmp_path, 1)[0]["round"] == 2
