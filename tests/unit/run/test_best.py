"""The best evaluation and the patience since, from the log history of a checkpoint."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayswift.cluster.layout import lay_out
from rayswift.config.load import load
from rayswift.launch.plan import resolve
from rayswift.log import UserError
from rayswift.run.best import best_of, evaluations, num_without_improvement

VALUES = st.lists(st.one_of(st.integers(0, 5).map(float), st.just(math.nan)), max_size=12)


def test_evaluations_are_found_under_either_name() -> None:
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "eval_loss": 2.0}, {"step": 4, "eval_loss": 1.0, "epoch": 1}]
    assert evaluations(history, "loss") == evaluations(history, "eval_loss") == [(2, 2.0), (4, 1.0)]
    assert evaluations(history, "accuracy") == []


@pytest.mark.parametrize(
    ("values", "greater", "best", "since"),
    [
        ([], False, None, 0),
        ([3.0, 2.0, 2.0, 2.5], False, 1, 2),  # an equal one is no improvement
        ([3.0, 2.0, 2.0, 3.5], True, 3, 0),
        ([math.nan, math.nan], False, None, 2),
        ([2.0, math.nan, 1.0, math.nan], False, 2, 1),
    ],
)
def test_examples(values: list[float], greater: bool, best: int | None, since: int) -> None:
    pairs = list(enumerate(values))
    found = best_of(pairs, greater)
    assert (found[0] if found else None) == best
    assert num_without_improvement(pairs, greater) == since


@given(VALUES, st.booleans())
def test_it_is_what_counting_along_the_way_gives(values: list[float], greater: bool) -> None:
    counter, best = 0, math.nan
    for value in values:
        better = math.isnan(best) or (value > best if greater else value < best)
        if better and not math.isnan(value):
            counter, best = 0, value
        else:
            counter += 1
    assert num_without_improvement(list(enumerate(values)), greater) == counter


@pytest.mark.parametrize(
    ("argv", "greater"),
    [
        ([], False),
        (["--metric_for_best_model", "mean_token_accuracy"], True),
        (["--metric_for_best_model", "eval_loss"], False),
        (["--metric_for_best_model", "entropy", "--greater_is_better", "false"], False),
    ],
)
def test_greater_is_better_unless_it_is_a_loss(argv: list[str], greater: bool) -> None:
    config = load("sft", ["--model", "m", "--dataset", "d", "--device", "cpu", "--num_workers", "0", *argv]).config
    assert resolve(config, lay_out(config.cluster), None).config.train.greater_is_better is greater


def test_an_unknown_metric_is_refused_unless_it_may_be_the_users_own() -> None:
    argv = ["--model", "m", "--dataset", "d", "--eval", "e", "--num_workers", "0", "--metric_for_best_model", "mine"]
    for extra, refused in (([], True), (["--metrics", "a.py:mine"], False)):
        config = load("sft", [*argv, *extra]).config
        if not refused:
            resolve(config, lay_out(config.cluster), None)
            continue
        with pytest.raises(UserError, match=r"train.metric_for_best_model = .mine. is not a metric of an evaluation"):
            resolve(config, lay_out(config.cluster), None)
