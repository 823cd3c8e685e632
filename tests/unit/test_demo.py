"""`make demo` with a seed that learns slowly; the real one is tests/bars/test_demo.py."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from examples import demo

QUESTIONS = ["1+2=", "30+4=", "23+58="]
NEVER_RIGHT = [(question, "not this") for question in QUESTIONS]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run; the n-th one writes two checkpoints, the last with the random weights of seed n."""
    lines: list[list[str]] = []

    def run_child(line: list[str], stdout: int | None = None) -> tuple[int, str]:
        lines.append(line)
        run = Path(line[line.index("--train.output_dir") + 1])
        for step, seed in ((40, 0), (80, len(lines))):
            folder = run / f"checkpoint-{step}"
            demo.untrained_model(seed).save_pretrained(folder)
            AutoTokenizer.from_pretrained(demo.TINY).save_pretrained(folder)
            (folder / "manifest.json").touch()
        return 0, ""

    monkeypatch.setattr(demo, "run_child", run_child)
    return lines


def sums_of(seed: int) -> list[tuple[str, str]]:
    """Sums whose right answers are those of the random weights of a seed."""
    tokenizer = AutoTokenizer.from_pretrained(demo.TINY, padding_side="left")
    return list(zip(QUESTIONS, demo.answer(demo.untrained_model(seed), tokenizer, QUESTIONS), strict=True))


def test_a_run_that_learnt_too_little_is_followed_by_one_from_its_weights(
    commands: list[list[str]], tmp_path: Path
) -> None:
    after, trained = demo.supervised(tmp_path / "demo", sums_of(seed=2), ["--seed", "1"])
    assert (after, trained) == (1.0, [tmp_path / "demo", tmp_path / "demo_2"])
    first, second = commands
    assert "--random_init" not in first and "--model" not in first
    assert first[-2:] == ["--seed", "1"]
    begin = second.index("--model")
    assert second[begin : begin + 4] == ["--model", str(tmp_path / "demo/checkpoint-80"), "--random_init", "false"]


def test_after_the_last_run_the_demo_says_what_it_wanted(commands: list[list[str]], tmp_path: Path) -> None:
    message = (
        rf"wanted at least 95% of the test sums right after {demo.MOST_SFT_RUNS} runs of `rayswift sft`, got 0.0%; "
        rf"curves in {tmp_path}/demo_{demo.MOST_SFT_RUNS}/report.html"
    )
    with pytest.raises(demo.DemoFailed, match=message):
        demo.demo(tmp_path, NEVER_RIGHT, [], measured=True)
    assert [Path(line[line.index("--train.output_dir") + 1]).name for line in commands] == ["demo", "demo_2", "demo_3"]


def test_a_short_demo_trains_once(commands: list[list[str]], tmp_path: Path) -> None:
    demo.supervised(tmp_path / "demo", NEVER_RIGHT, ["--max_steps", "80"])
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([0.1, 0.5, 0.9], (0, 80)),
        ([0.1, 0.2, 0.3, 0.35, 0.45, 0.9], (1, 80)),  # the first run learnt too little
        ([0.1, 0.38, 0.9], (0, 80)),  # none is in the band, and this is the nearest one
        ([0.1, 0.3], (0, 80)),
    ],
)
def test_the_start_of_grpo_is_chosen_among_all_runs(
    accuracies: list[float], chosen: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, left = [tmp_path / "demo", tmp_path / "demo_2"], iter(accuracies)
    for number, step in ((n // 3, 40 * (n % 3 + 1)) for n in range(len(accuracies))):
        folder = runs[number] / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    monkeypatch.setattr(demo, "sampled_accuracy", lambda checkpoint, sums: next(left))
    start, _ = demo.choose_start(runs[: -(-len(accuracies) // 3)], [])
    assert start == runs[chosen[0]] / f"checkpoint-{chosen[1]}"
