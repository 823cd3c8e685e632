"""Any number of workers shares one global batch; a range of worker counts is resolved."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.cluster.layout import Layout, gpus_for, lay_out
from rayswift.cluster.preflight import Ask, num_workers_that_fit
from rayswift.config.checks.distillation import engines_of, is_sampling
from rayswift.config.load import load
from rayswift.config.schema import RlhfConfig, SftConfig
from rayswift.data.sequence.global_batches import FeedPlan, Position, micro_batches, share
from rayswift.launch import plan as planning
from rayswift.log import UserError
from rayswift.run.checkpoint import Checkpoint
from rayswift.run.folder import Resume
from rayswift.train.clock import Clock
from rayswift.train.spec import RunSpec

REPO = Path(__file__).resolve().parents[3]


def config_of(*argv: str) -> SftConfig:
    given_argv = ["--model", str(REPO / "examples" / "tiny"), "--random_init", "--dataset", "d.jsonl"]
    config = load("sft", [*given_argv, "--max_length", "64", *argv]).config
    assert isinstance(config, SftConfig)
    return config


def cluster_of(workers: int, least: int | None = None) -> Layout:
    return Layout(workers, "cpu", 1, local=False, min_workers=least)


# ---- shares ----


@given(batch=st.integers(1, 200), size=st.integers(1, 20), most_rows=st.integers(1, 16))
def test_every_row_has_one_rank_and_fits_its_micro_batches(batch: int, size: int, most_rows: int) -> None:
    rows = list(range(batch))
    shares = [rows[share(batch, rank, size)] for rank in range(size)]
    assert [row for each in shares for row in each] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    per_batch, accumulation = micro_batches(batch, most_rows, size)
    assert per_batch <= most_rows
    assert per_batch * accumulation >= max(map(len, shares)) > per_batch * (accumulation - 1)


@pytest.mark.parametrize(
    ("size", "expected"), [(1, (2, 4)), (2, (2, 2)), (3, (2, 2)), (4, (2, 1)), (5, (2, 1)), (8, (1, 1))]
)
def test_micro_batches_keep_their_size(size: int, expected: tuple[int, int]) -> None:
    assert micro_batches(8, 2, size) == expected


def test_a_group_sees_its_own_micro_batches() -> None:
    config = config_of("--num_workers", "1", "4", "--per_device_train_batch_size", "2")
    plan = planning.resolve(config, cluster_of(4, 1), None)
    feed_plan = FeedPlan(plan.global_batch, 100, 2000, 1, -1, 0.01)
    here = Path()
    spec = RunSpec(plan.config, plan.layout, here, here, feed_plan, Clock(0), None, here)
    cuts = {}
    for size in (1, 2, 3, 4):
        seen = spec.for_world_size(size)
        train = seen.config.train
        cuts[size] = train.per_device_train_batch_size, train.gradient_accumulation_steps
        assert (seen.layout.num_workers, seen.layout.min_workers) == (size, None)
    assert cuts == {1: (2, 4), 2: (2, 2), 3: (2, 2), 4: (2, 1)}


# ---- the global batch ----


def resume_of(config: SftConfig, workers: int) -> Resume:
    saved = Checkpoint(Path("checkpoint-4"), 4, workers, 1)
    return Resume(saved, Position(step=4), 0.5, planning.resolve(config, cluster_of(workers), None).config.model_dump())


def batch_of(layout: Layout, resume: Resume | None, *argv: str) -> int:
    return planning.resolve(config_of(*argv), layout, resume).global_batch


def test_the_first_launch_fixes_the_global_batch() -> None:
    argv = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3")
    assert batch_of(cluster_of(2), None, *argv) == 12
    assert batch_of(cluster_of(4, 1), None, *argv) == 24  # the most workers of a range
    assert batch_of(cluster_of(2), None, *argv, "--global_batch_size", "7") == 7
    first = resume_of(config_of(*argv), 2)
    assert [batch_of(cluster_of(n), first, *argv) for n in (1, 2, 3, 5)] == [12] * 4


def test_another_batch_by_other_fields_is_another_global_batch() -> None:
    argv = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3")
    first = resume_of(config_of(*argv), 2)
    assert batch_of(cluster_of(2), first, *argv[:3], "6") == 24  # check_unchanged refuses it
    assert batch_of(cluster_of(1), first, *argv[:3], "6") == 12


def test_the_stage_stays_too() -> None:
    config = config_of("--zero_stage", "0")
    resume = resume_of(config, 2)
    assert planning.resolve(config_of(), cluster_of(2), resume).config.cluster.zero_stage == 1


def test_more_workers_than_rows_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"cluster\.num_workers = 3 leaves workers without a row of a global batch of 2"
    ):
        batch_of(cluster_of(3), None, "--global_batch_size", "2")


def test_elastic_needs_whole_checkpoints() -> None:
    with pytest.raises(UserError, match=r"train\.save_only_model leaves nothing"):
        batch_of(cluster_of(3, 1), None, "--save_only_model")


# ---- the range ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["2"], 2), (["[2]"], 2), (["1", "4"], [1, 4]), (["[1, 4]"], [1, 4]), (["null"], None), (["0"], 0)],
)
def test_counts_on_the_command_line(words: list[str], expected: Any) -> None:
    assert config_of("--num_workers", *words).cluster.num_workers == expected


@pytest.mark.parametrize("words", [["4", "1"], ["0", "4"], ["1", "2", "3"], ["-1"], ["many"]])
def test_counts_that_are_none(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"cluster\.num_workers") as caught:
        config_of("--num_workers", *words)
    assert len(str(caught.value).splitlines()) == 1


def test_a_range_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = config_of("--num_workers", "1", "4", "--address", "1.2.3.4:6379", "--device", "cpu")
    layout = lay_out(config.cluster)
    assert (layout.num_workers, layout.min_workers, layout.min_world_size, layout.local) == (4, 1, 1, False)
    plan = planning.resolve(config, layout, None)
    assert plan.config.cluster.num_workers == [1, 4]
    text = planning.describe(plan, None, [])
    assert "1 to 4 workers" in text
    assert "8 x 4 x 1 or 8 x 1 x 4 = 32 packed rows" in text


def test_a_range_on_this_machine_ends_at_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rayswift.cluster.layout.count_cores", lambda: 2)
    layout = lay_out(config_of("--num_workers", "1", "64", "--device", "cpu").cluster)
    assert (layout.num_workers, layout.min_workers) == (2, 1)
    with pytest.raises(UserError, match=r"cluster\.num_workers = 8 is more than the 2 CPU cores"):
        lay_out(config_of("--num_workers", "8", "64", "--device", "cpu").cluster)


def test_engines_share_the_gpus_with_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*argv: str) -> tuple[int, int, int]:
        given_argv = ["--model", str(REPO / "examples" / "tiny"), "--dataset", "d.jsonl", "--rlhf_type", "grpo"]
        config = load("rlhf", [*given_argv, *argv]).config
        assert isinstance(config, RlhfConfig)
        layout = lay_out(config.cluster, {"GPU": 8.0, "CPU": 64.0}, config.rollout)
        return layout.num_workers, layout.min_engines, layout.max_engines

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert of() == (4, 4, 4)
    assert of("--num_workers", "6") == (6, 2, 2)
    assert of("--num_engines", "2", "6") == (6, 2, 6)
    assert of("--num_engines", "1", "--tensor_parallel_size", "2") == (6, 1, 1)
    assert of("--device", "cpu", "--num_engines", "3") == (1, 3, 3)


def grpo_layout(*argv: str, joined: dict[str, float] | None = None) -> Layout:
    given_argv = ["--model", str(REPO / "examples" / "tiny"), "--dataset", "d.jsonl", "--rlhf_type", "grpo"]
    config = load("rlhf", [*given_argv, *argv]).config
    assert isinstance(config, RlhfConfig)
    return lay_out(config.cluster, joined, config.rollout)


def test_reward_models_hold_gpus_that_nobody_else_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rayswift.cluster.layout.count_gpus", lambda: 4)
    models = ("--reward_models", "a", "b")
    layout = grpo_layout(*models, "--reward_model_gpus", "1")
    assert (layout.num_workers, layout.max_engines, layout.num_reward_gpus) == (1, 1, 2)
    layout = grpo_layout(*models, "--reward_model_gpus", "0.5")  # both on one
    assert (layout.num_workers, layout.max_engines, layout.num_reward_gpus) == (2, 1, 1)
    layout = grpo_layout(*models)  # on the CPU
    assert (layout.num_workers, layout.max_engines, layout.num_reward_gpus) == (2, 2, 0)
    layout = grpo_layout(*models, "--reward_model_gpus", "1", "--device", "cpu")
    assert (layout.num_workers, layout.num_reward_gpus) == (1, 2)
    with pytest.raises(UserError, match=r"its reward models 2 \(rollout\.reward_model_gpus\); this machine shows 4"):
        grpo_layout(*models, "--reward_model_gpus", "1", "--num_workers", "2")
    with pytest.raises(UserError, match=r"the reward models need 6 GPU\(s\); this machine shows 4"):
        grpo_layout(*models, "--reward_model_gpus", "3")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    layout = grpo_layout(*models, "--reward_model_gpus", "1", joined={"GPU": 8.0, "CPU": 64.0})
    assert (layout.num_workers, layout.min_engines, layout.num_reward_gpus) == (3, 3, 2)


def test_a_part_of_a_gpu_is_of_one_gpu() -> None:
    found = [gpus_for(3, each) for each in (0, 0.25, 0.34, 0.5, 0.7, 1, 2)]
    assert found == [0, 1, 2, 2, 3, 3, 6]


def test_rewards_are_scored_by_as_many_processes_as_there_are_free_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    rewards = ("--reward_funcs", "accuracy")
    monkeypatch.setattr("rayswift.cluster.layout.count_cores", lambda: 16)
    monkeypatch.setattr("rayswift.cluster.layout.count_gpus", lambda: 0)
    assert grpo_layout(*rewards).reward_workers == 1  # engines compute with all
    assert grpo_layout(*rewards, "--rollout.engine_threads", "4").reward_workers == 12
    assert grpo_layout(*rewards, "--reward_workers", "3").reward_workers == 3
    assert grpo_layout("--reward_models", "m").reward_workers == 0
    monkeypatch.setattr("rayswift.cluster.layout.count_gpus", lambda: 4)
    assert grpo_layout(*rewards).reward_workers == 14
    assert grpo_layout(*rewards, "--max_staleness", "1").reward_workers == 12
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert grpo_layout(*rewards, joined={"GPU": 8.0, "CPU": 64.0}).reward_workers == 64 - 4 - 4 - 2
    assert grpo_layout(*rewards, joined={"GPU": 8.0, "CPU": 640.0}).reward_workers == 64
    assert grpo_layout(*rewards, joined={"CPU": 4.0}).reward_workers == 1


def test_what_a_sampling_run_asks_a_cluster_for() -> None:
    engine = {"GPU": 1.0}
    ask = Ask(2, {"CPU": 1.0, "GPU": 1.0}, 2, engine)
    assert str(ask) == "2 worker(s) of 1 CPU + 1 GPU each, 2 engine(s) of 1 GPU each, and 1 CPU for Ray Data"
    assert num_workers_that_fit(ask, [{"CPU": 8, "GPU": 4}]) == 2
    assert num_workers_that_fit(ask, [{"CPU": 8, "GPU": 3}]) == 1
    assert num_workers_that_fit(ask, [{"CPU": 8, "GPU": 1}]) == -1
    ask = replace(ask, num_reward_models=2, reward_model={"GPU": 0.5})
    assert "2 engine(s) of 1 GPU each, 2 reward model(s) of 0.5 GPU each, and 1 CPU" in str(ask)
    assert num_workers_that_fit(ask, [{"CPU": 8, "GPU": 4}]) == 1
    assert num_workers_that_fit(ask, [{"CPU": 8, "GPU": 5}]) == 2
    assert ask.bundles().count({"GPU": 0.5}) == 2
    ask = Ask(2, {"CPU": 1.0, "GPU": 1.0}, 2, engine)
    # Engines go where they take no worker's place.
    assert num_workers_that_fit(ask, [{"CPU": 4, "GPU": 2}, {"CPU": 0, "GPU": 2}]) == 2


@pytest.mark.parametrize(
    ("flags", "engine", "worker"),
    [
        ((), 4, 4),  # on-policy: by turns
        (("--rollout.num_engines", "2"), 2, 4),
        (("--rollout.max_staleness", "1"), 2, 2),
        (("--rollout.max_staleness", "1", "--rollout.engine_threads", "3", "--threads_per_worker", "1"), 3, 1),
    ],
)
def test_engines_and_workers_share_the_cores(
    flags: tuple[str, ...], engine: int, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayswift.cluster.layout.count_cores", lambda: 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = ("--model", "x", "--data.dataset", "y", "--train.task", "grpo", "--device", "cpu", "--num_workers", "1")
    config = load("rlhf", [*given, "--rollout.reward_funcs", "f", *flags]).config
    assert isinstance(config, RlhfConfig)
    layout = lay_out(config.cluster, None, config.rollout)
    assert (layout.engine_threads, layout.threads_per_worker) == (engine, worker)


def test_engines_of_a_teacher_have_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing else is sampled."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    joined = {"GPU": 8.0, "CPU": 64.0}
    layout = grpo_layout("--num_engines", "2", "--teacher_engines", "3", "--model.teacher", "t", joined=joined)
    assert (layout.num_workers, layout.min_engines, layout.teacher_engines) == (3, 2, 3)
    layout = grpo_layout("--teacher_engines", "2", "--model.teacher", "t", joined=joined)
    assert (layout.num_workers, layout.min_engines, layout.teacher_engines) == (3, 3, 2)
    argv = ["--model", "m", "--dataset", "d.jsonl", "--rlhf_type", "gkd", "--model.teacher", "t", "--lmbda", "0"]
    config = load("rlhf", [*argv, "--teacher_engines", "2"]).config
    layout = lay_out(config.cluster, joined, engines_of(config), is_sampling(config))
    assert (layout.num_workers, layout.max_engines, layout.teacher_engines) == (6, 0, 2)
    assert layout.engine["GPU"] == 1
