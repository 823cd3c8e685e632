"""Contradictions in a config, found before anything starts."""

import glob
from pathlib import Path

import pytest

from rayswift.config.load import load
from rayswift.launch.problems import config_problems


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--warmup_steps", "0.1"], False),  # a share of the rows, as the schedule's time scale is then
        (["--max_steps", "100"], False),
        ([], True),
        (["--warmup_steps", "20"], True),
        (["--warmup_steps", "0.1", "--lr_scheduler_kwargs", '{"timescale": 50}'], True),
    ],
)
def test_inverse_sqrt_is_not_stretched_over_rows_by_steps(flags: list[str], refused: bool) -> None:
    """Its time scale is the warm-up, or else 10,000: taken for millionths of the rows that is a tenth of the rate."""
    given = ["--model", "examples/tiny", "--data.dataset", "d.jsonl", "--lr_scheduler_type", "inverse_sqrt", *flags]
    config = load("sft", given).config
    config = config.model_copy(update={"train": config.train.model_copy(update={"eval_strategy": "no"})})
    found = [each for each in config_problems(config, False) if "lr_scheduler_type" in each]
    assert found == ["train.lr_scheduler_type = inverse_sqrt counts steps; set train.max_steps"] * refused


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        (["--output_dir", "runs/lr[1e-4]", "--zero_stage", "2"], True),
        (["--output_dir", "runs/lr[1e-4]", "--zero_stage", "0"], False),
        (["--output_dir", "s3://bucket/run?a=1*", "--zero_stage", "2"], False),
        (["--output_dir", "s3://bucket/run", "--scratch_dir", "/tmp/[1]", "--zero_stage", "3"], True),
    ],
)
def test_a_folder_in_which_deepspeed_finds_no_checkpoint(flags: list[str], refused: bool) -> None:
    """`transformers` and DeepSpeed take the path for a pattern of `glob`: such a run saves, and never continues."""
    config = load("sft", ["--model", "examples/tiny", "--data.dataset", "d.jsonl", *flags]).config
    found = [each for each in config_problems(config, True) if "special" in each]
    assert len(found) == refused


def test_glob_finds_nothing_in_a_folder_with_brackets(tmp_path: Path) -> None:
    """Once it does, the check before this is not needed."""
    (tmp_path / "lr[1]" / "global_step3").mkdir(parents=True)
    assert glob.glob(f"{tmp_path}/lr[1]/global_step*") == []
