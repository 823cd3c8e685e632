"""`rayswift sample`: which completions become rows, the content of rows, and a continued file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayswift.config.checks.built import problems
from rayswift.config.load import load
from rayswift.config.schema import SampleConfig
from rayswift.data.encode.config import RowKind
from rayswift.data.sequence.global_batches import Position
from rayswift.engines.samples import Completion, Group, Prompt, Scored, Trajectory
from rayswift.log import UserError
from rayswift.rollout import checks
from rayswift.rollout.episodes import schemas
from rayswift.rollout.sampling.file import FAILED, SampledFile
from rayswift.rollout.sampling.made_from import MadeFrom, made_from
from rayswift.rollout.sampling.rows import BAD, EASY, KEPT, RowSettings, rows_of
from rayswift.run import lock
from rayswift.run.folder import FINGERPRINT
from rayswift.verbs import sample

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny"
ORIGIN: MadeFrom = {}


def group_of(*scored: tuple[str, float]) -> Group:
    ids = np.arange(3, dtype=np.int32)
    prompt = Prompt(0, "rows.jsonl:1", 0, ids, ({"role": "user", "content": "2 + 3?"},), {"solution": "5"})
    done = Completion("k", ids, ids.astype(np.float32), (), "stop")
    return Group(prompt, tuple(Scored(done, (reward, float("nan")), reward, text) for text, reward in scored))


GROUP = group_of(("4", 0.0), ("5", 1.0), ("five", 0.5), ("5", 1.0))


def test_the_best_different_completions_are_rows_of_sft_and_dpo() -> None:
    rows, outcome = rows_of(GROUP, RowSettings(2), ("right", "judge"))
    assert outcome == KEPT
    assert [row["messages"][-1] for row in rows] == [
        {"role": "assistant", "content": "5"},
        {"role": "assistant", "content": "five"},
    ]
    assert [(row["reward"], row["rejected_response"], row["solution"]) for row in rows] == [
        (1, "4", "5"),
        (0.5, "4", "5"),
    ]
    assert rows[0]["messages"][0] == {"role": "user", "content": "2 + 3?"}
    assert rows[0]["rewards"] == {"right": 1.0, "judge": None}
    assert len({row["id"] for row in rows}) == 2
    json.dumps(rows, allow_nan=False)


def test_without_rewards_the_first_different_completions_are_rows() -> None:
    group = group_of(("4", 0.0), ("4", 0.0), ("5", 0.0), ("6", 0.0))
    scored = tuple(replace(each, rewards=()) for each in group.scored)
    rows, outcome = rows_of(replace(group, scored=scored), RowSettings(2), ())
    assert ([row["messages"][-1]["content"] for row in rows], outcome) == (["4", "5"], KEPT)
    assert all(set(row) == {"solution", "messages", "id"} for row in rows)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), ""),
        (("--num_generations", "1", "--temperature", "0"), ""),
        (("--num_generations", "1", "--reward_funcs", "format", "--min_reward", "1"), ""),
        (("--temperature", "0"), "rollout.temperature = 0 samples the same completion 8 times; set it above 0"),
        (("--min_reward", "1"), "sample.min_reward = 1.0: there is no reward to judge by"),
        (("--easy_query_threshold", "0.5"), "sample.easy_query_threshold = 0.5: there is no reward"),
    ],
)
def test_what_is_sampled_without_training_need_not_teach(flags: tuple[str, ...], why: str) -> None:
    found = problems(load("sample", ["--model", "m", "--data.dataset", "d.jsonl", *flags]).config)
    assert [line[: len(why)] for line in found] == [why] * bool(why)


def test_nothing_is_rejected_where_nothing_is_worse() -> None:
    (row,), _ = rows_of(group_of(("5", 1.0), ("5", 1.0)), RowSettings(3), ("right", "judge"))
    assert "rejected_response" not in row


def test_the_turns_of_an_episode_stand_in_the_row() -> None:
    def played(reward: float, *turns: tuple[str, str], asked: str | None = None) -> Scored:
        ids = np.arange(2, dtype=np.int32)
        trajectory = Trajectory(
            prompt_ids=ids,
            asked=None if asked is None else ({"role": "user", "content": asked},),
            written=np.ones(2, np.bool_),
            messages=tuple({"role": role, "content": content} for role, content in turns),
            num_turns=len(turns),
            num_calls=0,
            num_failed_calls=0,
            reward=None,
            end="stop",
            infos={},
            checksum=0,
        )
        done = Completion("k", ids, ids.astype(np.float32), (), "stop", trajectory=trajectory)
        return Scored(done, (reward, reward), reward, turns[-1][1])

    good = played(1.0, ("assistant", "4?"), ("user", "more"), ("assistant", "5"), asked="a number")
    bad = played(0.0, ("assistant", "4"))
    (row,), _ = rows_of(Group(GROUP.prompt, (good, bad)), RowSettings(1), ("right", "judge"))
    assert [message["content"] for message in row["messages"]] == ["a number", "4?", "more", "5"]
    assert [message["content"] for message in row["rejected_messages"]] == ["2 + 3?", "4"]
    assert "rejected_response" not in row


@pytest.mark.parametrize(
    ("settings", "kept", "outcome"),
    [
        (RowSettings(5, min_reward=0.75), ["5"], KEPT),
        (RowSettings(5, min_reward=2.0), [], BAD),
        (RowSettings(5, easy_query_threshold=0.4), [], EASY),
        (RowSettings(5, easy_query_threshold=0.5), ["5", "five", "4"], KEPT),
        (RowSettings(5, easy_query_threshold=0.7, right_from=0.5), [], EASY),
    ],
)
def test_which_prompts_and_completions_are_kept(settings: RowSettings, kept: list[str], outcome: str) -> None:
    rows, found = rows_of(GROUP, settings, ("right", "judge"))
    assert ([row["messages"][-1]["content"] for row in rows], found) == (kept, outcome)


def test_a_killed_command_goes_on_behind_the_last_prompt_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "deep/rows.jsonl"
    file = SampledFile(path, goes_on=False, made_from=ORIGIN)
    file.add([{"n": 1}, {"n": 2}], KEPT, Position(1))
    file.flush()
    file.add([{"n": 3}], KEPT, Position(2))
    file._file.flush()  # killed here: the row is there, and nothing counts it
    with pytest.raises(UserError, match="is there already; continue it with --resume auto"):
        SampledFile(path, goes_on=False, made_from=ORIGIN)
    again = SampledFile(path, goes_on=True, made_from=ORIGIN)
    assert (again.position, again.outcomes) == (Position(1), {KEPT: 1})
    again.add([{"n": 3}], KEPT, Position(2))
    again.add([], BAD, Position(3))
    again.close()
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert SampledFile(path, goes_on=True, made_from=ORIGIN).outcomes == {KEPT: 2, BAD: 1}


def test_rows_of_something_else_are_not_continued(tmp_path: Path) -> None:
    """Prompts by their content, the model and what decides the samples; a file that is moved is the same."""

    def origin(prompts: str, *argv: str) -> MadeFrom:
        path = tmp_path / "prompts.jsonl"
        path.write_text(json.dumps({"query": prompts}), encoding="utf-8")
        given = ["sample", "--dataset", str(path), "--model", str(TINY), "--reward_funcs", "accuracy", *argv]
        config = load("sample", given[1:]).config
        assert isinstance(config, SampleConfig)
        return made_from(config, TINY, RowKind("prompt"), "")

    path, first = tmp_path / "rows.jsonl", origin("2 + 3?")
    SampledFile(path, goes_on=False, made_from=first).close()
    SampledFile(path, goes_on=True, made_from=origin("2 + 3?", "--num_engines", "2")).close()
    for other, said in (
        (origin("3 + 3?"), "data.dataset: was"),
        (origin("2 + 3?", "--temperature", "0.5"), "rollout.temperature: was 1.0, is 0.5"),
        (origin("2 + 3?", "--model.adapters", str(tmp_path)), "model.adapters: was"),
    ):
        with pytest.raises(UserError, match="made from something else") as refused:
            SampledFile(path, goes_on=True, made_from=other)
        assert said in str(refused.value)


def test_rows_of_other_weights_in_the_same_folder_are_not_continued(tmp_path: Path) -> None:
    model, judge = tmp_path / "model", tmp_path / "judge"
    for folder in (model, judge):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100))
    (tmp_path / "prompts.jsonl").write_text('{"query": "2 + 3?"}')
    argv = ["--dataset", str(tmp_path / "prompts.jsonl"), "--model", str(model), "--reward_models", str(judge)]

    def origin() -> MadeFrom:
        return made_from(load("sample", argv).config, TINY, RowKind("prompt"), "")

    path = tmp_path / "rows.jsonl"
    SampledFile(path, goes_on=False, made_from=origin()).close()
    for folder, said in ((model, "weights: was"), (judge, "weights beside the model: was")):
        was = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(b"\1" * 100)
        with pytest.raises(UserError, match=said):
            SampledFile(path, goes_on=True, made_from=origin())
        (folder / "model.safetensors").write_bytes(was)
    SampledFile(path, goes_on=True, made_from=origin()).close()


def test_a_command_that_was_killed_before_its_first_flush_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = SampledFile(path, goes_on=False, made_from=ORIGIN)
    file.add([{"n": 1}], KEPT, Position(1))
    file._file.flush()  # killed here
    again = SampledFile(path, goes_on=True, made_from=ORIGIN)
    assert (again.position, again.outcomes, path.read_bytes()) == (Position(), {}, b"")


def test_a_file_that_does_not_fit_its_progress_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = SampledFile(path, goes_on=False, made_from=ORIGIN)
    file.add([{"n": 1}], KEPT, Position(1))
    file.close()
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"has 0 bytes, but rows.jsonl.progress beside it counts 9: rows are missing"):
        SampledFile(path, goes_on=True, made_from=ORIGIN)
    path.with_name("rows.jsonl.progress").unlink()
    with pytest.raises(UserError, match=r"cannot be continued: rows.jsonl.progress is not beside it; name another"):
        SampledFile(path, goes_on=True, made_from=ORIGIN)


def test_prompts_that_fail_end_the_command_with_an_error(tmp_path: Path) -> None:
    """From 100 prompts on, and behind the last one however few there are."""
    file = SampledFile(tmp_path / "rows.jsonl", goes_on=False, made_from=ORIGIN)
    for number in range(99):
        file.add([], FAILED, Position(number))
    file.judge(0.5)
    with pytest.raises(UserError, match=r"99 of 99 prompts failed, more than rollout.max_failed_fraction = 0.5"):
        file.judge(0.5, ended=True)
    file.add([], FAILED, Position(99))
    with pytest.raises(UserError, match="100 of 100 prompts failed"):
        file.judge(0.5)
    file.judge(1.0, ended=True)


def test_episodes_are_sampled_too() -> None:
    """Their tools are shown in the prompts, as in training."""
    config = load(
        "sample", ["--model", "m", "--dataset", "d", "--reward_funcs", "format", "--tools", "calculator"]
    ).config
    checks.check(config)
    assert [each["function"]["name"] for each in schemas.settled(config).rollout.tool_schemas] == ["calculator"]


def test_a_folder_in_use_or_of_a_training_run_is_refused(tmp_path: Path) -> None:
    """Two of them would write the indices of their rows over each other's; of a run, its tokenizer and rows."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"query": "2 + 3?"}\n', encoding="utf-8")
    argv = ["--model", str(TINY), "--random_init", "--dataset", str(prompts), "--reward_funcs", "format"]
    asked = load("sample", [*argv, "--output_dir", str(tmp_path / "run"), "--output_file", str(tmp_path / "rows")])
    with lock.held(str(tmp_path / "run")), pytest.raises(UserError, match="is in use by another launch"):
        sample.run(asked)
    (tmp_path / "run" / FINGERPRINT).write_text("{}")
    with pytest.raises(UserError, match="holds a training run"):
        sample.run(asked)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {FINGERPRINT}


def test_flags_of_swift_sample() -> None:
    argv = ["--model", "m", "--dataset", "d.jsonl", "--orm_model", "math", "--num_return_sequences", "64"]
    invocation = load("sample", [*argv, "--n_best_to_keep", "2", "--sampler_engine", "vllm", "--temperature", "0.8"])
    assert not any("defaults" in line or "model.tuner" in line for line in invocation.notes)
    config = invocation.config
    assert (config.rollout.num_generations, config.rollout.reward_funcs) == (64, ["accuracy"])
    assert (config.sample.n_best_to_keep, config.rollout.temperature, config.train.task) == (2, 0.8, "grpo")
    with pytest.raises(UserError, match="prm_model is refused"):
        load("sample", [*argv, "--prm_model", "p"])
