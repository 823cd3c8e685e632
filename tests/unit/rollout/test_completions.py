"""Completions as Parquet: readable at any moment, in bounded parts, without rounds that are made again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayswift.engines.samples import Completion, Group, PolicyVersion, Prompt, Scored, Span, Trajectory
from rayswift.rollout import completions
from rayswift.rollout.completions import CompletionsFile, newest


def group(ordinal: int, rewards: list[float], version: int = 0) -> Group:
    messages = ({"role": "system", "content": "S"}, {"role": "user", "content": f"question {ordinal}"})
    prompt = Prompt(ordinal, f"rows:{ordinal}", 0, np.zeros(3, np.int32), messages, {})
    spans = (Span(0, PolicyVersion(1, version)), Span(1, PolicyVersion(1, version + 1)))
    made = []
    for i, reward in enumerate(rewards):
        tokens = np.zeros(i + 1, np.int32)
        completion = Completion(f"{ordinal}:{i}", tokens, np.zeros(i + 1, np.float32), spans, "stop")
        made.append(Scored(completion, (reward, float("nan")), reward, f"answer {i}"))
    return Group(prompt, tuple(made))


def rows(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "completions").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_what_a_row_says(tmp_path: Path) -> None:
    file = CompletionsFile(tmp_path, ["accuracy", "judge"], str)
    file.add(3, [group(5, [1.0, 0.0])], "trained")
    file.add(3, [group(6, [0.0])], "filtered: all rewards equal")
    file.close()
    first, second, third = rows(tmp_path)
    assert np.isnan(first.pop("reward_judge"))
    assert first == {
        "round": 3,
        "id": "rows:5",
        "epoch": 0,
        "ordinal": 5,
        "outcome": "trained",
        "prompt": "S\nquestion 5",
        "completion": "answer 0",
        "reward": 1.0,
        "reward_accuracy": 1.0,
        "num_tokens": 1,
        "finish": "stop",
        "oldest_version": 0,
        "newest_version": 1,
    }
    assert (second["completion"], second["num_tokens"]) == ("answer 1", 2)
    assert (third["ordinal"], third["outcome"]) == (6, "filtered: all rewards equal")


def test_columns_of_episodes_are_kept_after_completions_of_one_turn(tmp_path: Path) -> None:
    single = group(5, [1.0])
    (scored,) = single.scored
    written = np.ones(1, np.bool_)
    episode = Trajectory(np.zeros(3, np.int32), None, written, (), 2, 3, 1, None, "stop", {}, 0)
    played = replace(single, scored=(replace(scored, completion=replace(scored.completion, trajectory=episode)),))
    file = CompletionsFile(tmp_path, ["accuracy", "judge"], str)
    file.add(0, [single], "trained")
    file.add(1, [played], "trained")
    file.close()
    assert [(row["num_turns"], row["num_calls"], row["end"]) for row in rows(tmp_path)] == [
        (None, None, None),
        (2, 3, "stop"),
    ]


def test_the_rest_of_a_prompt_that_was_cut_is_written(tmp_path: Path) -> None:
    whole = group(5, [1.0])
    file = CompletionsFile(tmp_path, ["accuracy", "judge"], lambda ids: f"tokens {ids}")
    file.add(3, [replace(whole, prompt=replace(whole.prompt, cut=True))], "trained")
    file.close()
    (row,) = rows(tmp_path)
    assert row["prompt"] == "tokens [0, 0, 0]"


def test_parts_are_bounded_and_rounds_that_come_again_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "_PART_ROWS", 10)
    file = CompletionsFile(tmp_path, ["a", "b"], str)
    for number in range(12):
        file.add(number, [group(number, [0.0] * 4)], "trained")
    sizes = [pq.read_metadata(part).num_rows for part in sorted((tmp_path / "completions").iterdir())]
    assert sizes == [12, 12, 12, 12]
    for start in (7, 6):  # within a part, and at the beginning of one; by the same writer and by a new one
        file.begin(start)
        assert sorted({row["round"] for row in rows(tmp_path)}) == list(range(start))
        file = CompletionsFile(tmp_path, ["a", "b"], str)
        for number in range(start, 12):
            file.add(number, [group(number, [1.0] * 4)], "trained")
        file.close()
        assert [row["round"] for row in rows(tmp_path)] == [number for number in range(12) for _ in range(4)]
    file.begin(0)
    assert rows(tmp_path) == []


def test_a_short_run_is_there_before_it_ends(tmp_path: Path) -> None:
    file = CompletionsFile(tmp_path, ["a", "b"], str)
    file.add(0, [group(0, [1.0, 0.0])], "trained")
    assert len(rows(tmp_path)) == 2


def test_what_a_checkpoint_counts_is_written_before_it_and_once_after_a_resume(tmp_path: Path) -> None:
    killed = CompletionsFile(tmp_path, ["a", "b"], str)
    for number in range(4):
        killed.add(number, [group(number, [1.0] * 4)], "trained")
        if number == 1:
            killed.flush()  # the checkpoint behind round 1; the kill comes before anything else is written
    resumed = CompletionsFile(tmp_path, ["a", "b"], str)
    resumed.begin(2)
    for number in range(2, 6):
        resumed.add(number, [group(number, [0.0] * 4)], "trained")
    resumed.close()
    assert [row["round"] for row in rows(tmp_path)] == [number for number in range(6) for _ in range(4)]


def test_a_round_over_several_parts_keeps_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "_PART_ROWS", 4)
    file = CompletionsFile(tmp_path, ["a", "b"], str)
    for ordinal in range(12):
        file.add(0, [group(ordinal, [1.0] * 4)], "filtered: all rewards equal")
    file.add(0, [group(12, [0.0, 2.0])], "trained")
    file.close()
    assert [row["ordinal"] for row in rows(tmp_path)] == [*(n for n in range(12) for _ in range(4)), 12, 12]
    assert [row["reward"] for row in newest(tmp_path, 2)] == [2.0, 0.0]


def test_the_newest_samples_are_spread_over_their_rewards(tmp_path: Path) -> None:
    assert newest(tmp_path, 3) == []
    file = CompletionsFile(tmp_path, ["a", "b"], str)
    file.add(0, [group(0, [9.0])], "trained")
    file.add(1, [group(1, [0.0, 4.0, 1.0, 3.0, 2.0])], "trained")
    file.close()
    assert [row["reward"] for row in newest(tmp_path, 3)] == [4.0, 2.0, 0.0]
    assert [row["reward"] for row in newest(tmp_path, 9)] == [4.0, 3.0, 2.0, 1.0, 0.0]
