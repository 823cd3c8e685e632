"""Rewards: built-ins compared with TRL's, calls of functions, and the completions of a batch that fail."""

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayswift.config import user_code
from rayswift.config.rollout import RolloutConfig
from rayswift.engines.samples import Completion, Prompt, Trajectory
from rayswift.log import UserError
from rayswift.rollout.rewards import builtin, functions, runner
from rayswift.rollout.rewards.dispatch import Dispatcher
from rayswift.rollout.rewards.functions import Item, RewardSpec, Value
from rayswift.rollout.rewards.worker import spread
from tests.virtual_time import run as run_virtually

IDS = st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=5)


def say(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


# ---- built-ins ----

ANSWERS = [
    (r"My answer is \boxed{\frac{1}{3}}", r"\frac{1}{3}", 1.0),
    (r"My answer is \boxed{\frac{1}{2}}", r"\frac{1}{3}", 0.0),
    (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
]


@pytest.mark.parametrize(("text", "solution", "wanted"), ANSWERS)
def test_accuracy_is_that_of_trl_on_marked_answers(text: str, solution: str, wanted: float) -> None:
    from trl.rewards import accuracy_reward

    assert builtin.accuracy(say(text), [solution]) == accuracy_reward(say(text), [solution]) == [wanted]


@pytest.mark.parametrize(
    ("text", "solution", "wanted"),
    [
        ("42", 42, 1.0),
        ("1,234.0", "1234", 1.0),
        ("41", "42", 0.0),
        ("7*6=42 #### 42", "six times seven #### 42", 1.0),
        ("The answer is 42.", "42", 1.0),
        ("<think>it is 5</think><answer> 42 </answer>", "42", 1.0),
        ("<think>it is 42</think> 5", "42", 0.0),
        (r"<think>\boxed{3}</think> \boxed{4}", "4", 1.0),
        ("Paris", "Paris", 1.0),
        ("Rome", "Paris", 0.0),
        ("", "42", 0.0),
    ],
)
def test_accuracy_of_plain_answers(text: str, solution: Any, wanted: float) -> None:
    assert builtin.accuracy([text], [solution]) == [wanted]
    assert builtin.accuracy(say(text), None, [solution]) == [wanted]


def test_answers_that_were_judged_before_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    parsed: list[str] = []
    parse = math_verify.parse

    def counted(text: str, **options: Any) -> Any:
        parsed.append(text)
        return parse(text, **options)

    monkeypatch.setattr(math_verify, "parse", counted)
    monkeypatch.setattr(builtin, "_SLOW_S", float("inf"))  # of a busy machine every judgement is slow
    gold, right, wrong = r"\frac{\sqrt{17}}{19}", r"so $\frac{2\sqrt{17}}{38}$", r"so $\frac{\sqrt{17}}{18}$"
    assert builtin.accuracy([right, wrong, right], [gold] * 3) == [1.0, 0.0, 1.0]
    assert parsed == [f"${gold}$", right, wrong]
    assert builtin.accuracy([wrong, right], [gold] * 2) == [0.0, 1.0]
    assert len(parsed) == 3
    # What is too long to be kept is judged anew, against the reference as it was parsed.
    long = "a " * 2500 + right
    assert builtin.accuracy([long, long], [gold] * 2) == [1.0, 1.0]
    assert parsed[3:] == [long, long]


def test_a_judgement_that_a_deadline_may_have_cut_off_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import math_verify

    gold, right = r"\frac{\sqrt{23}}{29}", r"so $\frac{2\sqrt{23}}{58}$"
    parse, is_cut_off = math_verify.parse, True
    monkeypatch.setattr(builtin, "_SLOW_S", 0.05)

    def cut_off(text: str, **options: Any) -> Any:
        if is_cut_off:
            time.sleep(0.1)
            return []
        return parse(text, **options)

    monkeypatch.setattr(math_verify, "parse", cut_off)
    assert builtin.accuracy([right], [gold]) == [0.0]
    is_cut_off = False
    monkeypatch.setattr(builtin, "_SLOW_S", 1e9)
    assert builtin.accuracy([right], [gold]) == [1.0]


@pytest.mark.parametrize(
    ("text", "solution", "wanted"),
    [
        (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", 1.0),
        (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", 1.0),
        (r"\sqrt{12}", r"2\sqrt{3}", 1.0),
        (r"It is $\sqrt{12}$.", r"so we get $\boxed{2\sqrt{3}}$", 1.0),
        ("3", r"2\sqrt{3}", 0.0),
        (r"\boxed{2}", r"2\sqrt{3}", 0.0),
        ("$x^2 + 1$", "x^2+1", 1.0),
        (r"first \boxed{\sqrt{12}}, that is \boxed{2\sqrt{3}}", r"2\sqrt{3}", 1.0),
        (r"\boxed{2\sqrt{2}} or \boxed{2\sqrt{3}}", r"2\sqrt{3}", 0.0),
        (r"\boxed{2\sqrt{3}} or \boxed{2\sqrt{2}}", r"2\sqrt{3}", 0.0),
        (r"\boxed{}", r"2\sqrt{3}", 0.0),
        (r"\boxed{(3, 4)}", "(3, 4)", 1.0),
        (r"\boxed{(4, 3)}", "(3, 4)", 0.0),
        (r"\boxed{3\pi}", r"3\pi", 1.0),
        (r"\boxed{3}", r"3\pi", 0.0),
        (r"\boxed{Paris}", "Paris", 1.0),
        (r"\boxed{Paris} \boxed{Rome}", "Paris", 0.0),
        ("Paris or Rome", "Paris", 0.0),
        ("Rome 2024", "Paris 2024", 0.0),
        (r"\boxed{sirap}", "paris", 0.0),
        ("<answer>Rome</answer><answer>Paris</answer>", "Paris", 0.0),
        ("<think>Paris", "Paris", 0.0),
    ],
)
def test_accuracy_of_expressions_and_texts(text: str, solution: str, wanted: float) -> None:
    assert builtin.accuracy([text], [solution]) == [wanted]


def test_accuracy_needs_a_solution() -> None:
    with pytest.raises(ValueError, match="neither a column `solution` nor `answer`"):
        builtin.accuracy(["1"], [None], [None])


@settings(max_examples=50, deadline=None)
@given(IDS, st.integers(1, 4), st.floats(-2, 0))
def test_repetition_is_that_of_trl(ids: list[list[int]], n: int, penalty: float) -> None:
    from trl.rewards import get_repetition_penalty_reward

    wanted = get_repetition_penalty_reward(n, penalty)(completion_ids=ids)
    assert builtin.repetition(ids, n_grams=n, max_penalty=penalty) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(IDS, st.integers(1, 20), st.integers(1, 20))
def test_soft_overlong_is_that_of_trl(ids: list[list[int]], free: int, cache: int) -> None:
    from trl.rewards import get_soft_overlong_punishment

    wanted = get_soft_overlong_punishment(free + cache, cache)(completion_ids=ids)
    assert builtin.soft_overlong(ids, max_length=free + cache, cache_length=cache) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(IDS, st.integers(1, 20), st.tuples(*[st.floats(-1, 1)] * 4))
def test_cosine_is_that_of_trl(ids: list[list[int]], max_len: int, ends: tuple[float, ...]) -> None:
    from trl.rewards import get_cosine_scaled_reward

    texts = [r"\boxed{1}" if sum(one) % 2 else r"\boxed{2}" for one in ids]
    names = ("min_len_value_wrong", "max_len_value_wrong", "max_len_value_correct", "min_len_value_correct")
    wanted = get_cosine_scaled_reward(max_len, *ends)(say(*texts), ["1"] * len(ids), ids)
    made = builtin.cosine(texts, ids, ["1"] * len(ids), max_len=max_len, **dict(zip(names, ends, strict=True)))
    assert made == pytest.approx(wanted, abs=1e-12)


def test_formats() -> None:
    from trl.rewards import think_format_reward

    texts = [
        "<think>a</think> <answer>b</answer>",
        "<think>a</think> b",
        "<think>\na\n</think>\n<answer>\nb\n</answer>",
        " <think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer> c",
        "<think>a<think>b</think> c",
        "",
    ]
    assert builtin.format(texts) == [1, 0, 1, 0, 0, 0, 0]
    assert builtin.think_format(texts) == think_format_reward(say(*texts))
    assert builtin.tag_count(texts) == [0, 0, 1, 0, 0, 0, 0]
    assert builtin.tag_count(["<think>\na\n</think>\n<answer>\nb", "<think>\n" * 2]) == [0.75, 0]


GOOD_FORMAT = "<think>\na\n</think>\n<answer>\nb\n</answer>"


@pytest.mark.parametrize(
    ("text", "as_format", "as_think_format", "as_tag_count"),
    [
        (GOOD_FORMAT, 1, 1, 1),
        (GOOD_FORMAT + "\n", 1, 1, 1),
        ("<think>\nx < 3, or <b>x</b>\n\ny > 4\n</think>\n\n<answer>\n1 < 2\n</answer>", 1, 1, 1),
        ("<think>a</think><answer>b</answer>", 1, 1, 0),
        ("<think></think><answer></answer>", 0, 0, 0),
        ("<think>\n\n</think>\n\n<answer>\n\n</answer>", 0, 0, 0.5),
        ("<think>a</think>\n<answer>\n</answer>", 0, 1, 0.25),
        ("<think>\n</think>\n<answer>b</answer>", 0, 0, 0.25),
        ("<think>a</think>", 0, 0, 0),
        ("<think>a</think>  \n", 0, 0, 0),
        ("<think>a", 0, 0, 0),
        ("a</think> b", 0, 0, 0),
        ("<think>a</think> b</think> c", 0, 0, 0),
        ("<think>a</think> b <think>c</think> d", 0, 0, 0),
        ("<think>a<think>b</think> c", 0, 0, 0),
        (f"{GOOD_FORMAT}\n{GOOD_FORMAT}", 0, 0, 0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0, 1, 0),
        ("<think>a</think> so <answer>b</answer>", 0, 1, 0),
        ("<think>a</think><answer>b</answer> indeed", 0, 1, 0),
        ("\n</answer>\n<answer>\n\n</think>\n<think>\n", 0, 0, 0.25),
        ("<think>\n" + "\n</think>\n" * 5 + "\n<answer>\n" + "\n</answer>", 0, 0, 0.5),
        ("", 0, 0, 0),
    ],
)
def test_formats_are_paid_for_only_with_something_in_them(
    text: str, as_format: float, as_think_format: float, as_tag_count: float
) -> None:
    found = [reward([text])[0] for reward in (builtin.format, builtin.think_format, builtin.tag_count)]
    assert found == [as_format, as_think_format, as_tag_count]


def test_no_wrong_answer_is_worth_as_much_as_a_right_one() -> None:
    """Of cosine: questions restated, candidates and padding to any length are worth less than the longest answer."""
    wrong = ["4 + 18 = ?", "21 or 22", r"\boxed{}", "22, 23", "", "22 " * 40]
    lengths = [[0] * n for n in (0, 1, 8, 64, 640)]
    pairs = [(text, ids) for text in wrong for ids in lengths]
    values = builtin.cosine([text for text, _ in pairs], [ids for _, ids in pairs], ["22"] * len(pairs), max_len=64)
    right = builtin.cosine(["22"] * len(lengths), lengths, ["22"] * len(lengths), max_len=64)
    assert max(values) <= 0 < 0.5 <= min(right)
    assert right == sorted(right, reverse=True)
    assert right[-1] == right[-2]  # beyond max_len nothing changes


def test_length_and_repetition_are_never_paid_for() -> None:
    texts = [[], [1], [1, 1], list(range(64)), [1, 2] * 32, [1] * 640]
    assert builtin.repetition(texts) == pytest.approx([0, 0, 0, 0, -60 / 62, -637 / 638])
    assert builtin.soft_overlong(texts, max_length=64, cache_length=32) == [0, 0, 0, -1, -1, -1]


# ---- names ----


def test_names_are_short_and_unique() -> None:
    rollout = RolloutConfig(
        reward_funcs=["format", "a.py:score", "b.py:score", "my.module:score"], reward_models=["/models/judge"]
    )
    assert functions.names_of(rollout) == ["format", "score", "score_2", "score_3", "judge"]


def test_lengths_are_those_of_the_run_unless_given() -> None:
    rollout = RolloutConfig(
        reward_funcs=["cosine", "soft_overlong"],
        max_completion_length=64,
        reward_kwargs={"soft_overlong": {"cache_length": 8, "max_length": 32}},
    )
    assert [spec.kwargs for spec in functions.specs_of(rollout)] == [
        {"max_len": 64},
        {"max_length": 32, "cache_length": 8},
    ]


def test_a_reward_of_ms_swift_is_found_by_its_registered_name_and_gets_texts(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(
        """from swift.llm import Template, to_device
from swift.plugin.rm_plugin import DefaultRMPlugin
from swift.rewards import AsyncORM, ORM, orms, rm_plugins

class MathAccuracy(ORM):
    def __call__(self, completions, solution, **kwargs):
        assert [each[-1]["content"] for each in kwargs["messages"]] == completions
        return [float(given.strip() == wanted) for given, wanted in zip(completions, solution)]

class Slow(AsyncORM):
    async def __call__(self, completions, **kwargs):
        return [float(len(each)) for each in completions]

class OnDevice(ORM):
    def __call__(self, completions, **kwargs):
        return to_device(completions)

orms["external_device"] = OnDevice
orms["external_math_acc"] = MathAccuracy
orms["external_slow"] = Slow
rm_plugins["my_judge"] = Slow
"""
    )
    items = [item("4 ", solution="4"), item("5", solution="4")]
    for name, wanted in (("external_math_acc", [1.0, 0.0]), ("external_slow", [2.0, 1.0])):
        assert call(functions.load(RewardSpec(name, f"{file}:{name}")), items) == wanted
    asked = call(functions.load(RewardSpec("d", f"{file}:external_device")), items)
    assert "ms-swift's to_device is not part of RaySwift" in str(asked)
    assert user_code.load("rollout.reward_model_plugins", f"{file}:my_judge").__name__ == "Slow"


@pytest.mark.parametrize(("argument", "remedy"), [("environments", "get_reward()"), ("trainer_state", "a default")])
def test_a_function_that_needs_trls_trainer_is_refused(argument: str, remedy: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def f({argument}, **columns): ...\ndef g(completions, {argument}=None): ...\n")
    with pytest.raises(UserError, match=f"needs `{argument}`, which is not passed here; .*{re.escape(remedy)}"):
        functions.load(RewardSpec("f", f"{file}:f"))
    functions.load(RewardSpec("g", f"{file}:g"))


# ---- one call ----


def call(function: Callable[..., Any], items: Sequence[Item], conversational: bool = True) -> list[Value] | str:
    loop = asyncio.new_event_loop()
    try:
        return functions.call(RewardSpec("mine", "m:mine"), function, items, conversational, loop)
    finally:
        loop.close()


def item(text: str, **columns: Any) -> Item:
    return Item([{"role": "user", "content": "q"}], columns, text, [1, 2])


def test_a_function_is_called_as_trl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def mine(prompts: Any, completions: Any, completion_ids: Any, solution: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids, solution=solution)
        return [1, 2.5]

    items = [item("a", solution="s", level=1), item("b", solution="t", other=2)]
    assert call(mine, items) == [1.0, 2.5]
    question = {"role": "user", "content": "q"}
    assert seen == {
        "prompts": [[question], [question]],
        "completions": say("a", "b"),
        "completion_ids": [[1, 2], [1, 2]],
        "solution": ["s", "t"],
        "level": [1, None],
        "other": [None, 2],
    }
    assert call(mine, items, conversational=False) == [1.0, 2.5]
    assert (seen["prompts"], seen["completions"]) == (["q", "q"], ["a", "b"])


def test_a_function_that_changes_a_row_changes_it_for_one_completion() -> None:
    def mine(prompts: Any, completions: Any, tests: Any) -> list[float]:
        for prompt in prompts:
            prompt[-1]["content"] += "!"
        assert all(prompt[-1]["content"] == "q!" for prompt in prompts)
        return [
            float(completion[0]["content"] == test.pop()) for completion, test in zip(completions, tests, strict=True)
        ]

    row = item("a", tests=["a"])
    assert call(mine, [row, row._replace(text="b"), row]) == [1.0, 0.0, 1.0]


def test_a_function_gets_only_what_it_takes_and_may_be_a_coroutine() -> None:
    async def mine(completions: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [None, True]

    assert call(mine, [item("a", x=1), item("b", x=1)]) == [None, 1.0]


def raises(**columns: Any) -> list[float]:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (raises, "reward mine raised KeyError: 'gone' (test_rewards.py:"),
        (lambda **_: None, "reward mine returned garbage: NoneType, wanted a list of numbers"),
        (lambda **_: [1], "reward mine returned garbage: 1 values for 2 completions"),
        (
            lambda solution, **_: [len(each) for each in solution],
            "reward mine raised TypeError: object of type 'NoneType' has no len(); no column `solution` in the row, "
            "there are: x;",
        ),
    ],
)
def test_a_call_that_fails_says_why(function: Callable[..., Any], wanted: str) -> None:
    found = call(function, [item("a", x=1), item("b", x=1)])
    assert isinstance(found, str) and found.startswith(wanted)


def test_every_episode_has_infos() -> None:
    messages = ({"role": "user", "content": "q"},)
    ids = np.zeros(2, np.int32)
    said = ({"role": "assistant", "content": "a"},)
    played = Trajectory(ids, None, np.ones(2, np.bool_), said, 1, 0, 0, None, "stop", {}, 0)
    completion = Completion("k", ids, np.zeros(2, np.float32), (), "stop", trajectory=played)
    made = runner._item(Prompt(0, "p:0", 0, ids, messages, {"x": 1}), completion, "", [0, 0])
    assert (made.columns, made.text) == ({"x": 1, "rollout_infos": {}}, "a")


def test_rows_of_another_data_set_may_lack_what_a_function_needs() -> None:
    def mine(completions: Any, solution: Any) -> list[float | None]:
        return [None if wanted is None else 1.0 for wanted in solution]

    rows = [item("a", solution="a"), item("b", tests=["x"])]
    assert call(mine, rows) == [1.0, None]
    assert call(mine, rows[1:]) == [None]
    first, second = call(lambda completions, solution: [0.0, 0.0], rows)
    assert first == 0.0
    assert str(second).startswith("reward mine gave a number: no column `solution` in the row, there are: tests;")


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", "good", [1], object()])
def test_garbage_for_one_completion_is_its_failure_alone(value: Any) -> None:
    first, second = call(lambda **_: [0.5, value], [item("a"), item("b")])
    assert first == 0.5
    assert isinstance(second, str) and second.startswith("reward mine returned garbage: ")


# ---- where workers run ----


def test_workers_are_spread_over_the_nodes_by_their_cpus() -> None:
    assert spread(3, {"a": 2.0}, "a") == ["a", "a", "a"]
    assert spread(4, {"a": 4.0, "b": 4.0}, "b") == ["b", "a", "b", "a"]
    nodes = spread(30, {"head": 4.0, "big": 16.0, "small": 10.0}, "head")
    assert [nodes.count(node) for node in ("head", "big", "small")] == [4, 16, 10]
    assert spread(2, {}, "here") == ["here", "here"]


# ---- batches ----


class Scorer:
    """Fails as the texts say: whole for r (raises), alone for g (garbage); f fails the first call it is in."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.seen: set[int] = set()

    async def score(self, source: int, items: Sequence[Item], timeout_s: float) -> list[Value] | str:
        await asyncio.sleep(0)
        self.calls.append(len(items))
        new = [one for one in items if id(one) not in self.seen]
        self.seen |= {id(one) for one in items}
        if any(one.text == "r" for one in items) or any(one.text == "f" for one in new):
            return "whole"
        return ["alone" if one.text == "g" else float(source) for one in items]


def dispatch(groups: Sequence[str], num_workers: int) -> tuple[list[list[Value]], list[int]]:
    async def run() -> list[list[Value]]:
        dispatcher = Dispatcher(workers, 60)
        dispatcher.start()
        made = [[item(kind) for kind in group] for group in groups]
        found = await asyncio.gather(*(dispatcher.score(7, items) for items in made))
        await dispatcher.close()
        return found

    workers = [Scorer() for _ in range(num_workers)]
    seen = workers[0].seen
    for worker in workers:
        worker.seen = seen
    return asyncio.run(run()), [size for worker in workers for size in worker.calls]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("oooorgf", min_size=1, max_size=20), min_size=1, max_size=12), st.integers(1, 3))
def test_exactly_the_guilty_fail(groups: list[str], num_workers: int) -> None:
    found, calls = dispatch(groups, num_workers)
    wanted = {"o": 7.0, "f": 7.0, "r": "whole", "g": "alone"}
    assert found == [[wanted[kind] for kind in group] for group in groups]
    num_guilty = sum(kind != "o" for group in groups for kind in group)
    # Each guilty one costs at most a path of cuts in eight, and its parts' retries.
    assert len(calls) <= len(groups) + 8 * num_guilty * (1 + math.ceil(math.log(240, 8)))


def test_what_waits_goes_in_one_call() -> None:
    _, calls = dispatch(["oooooooo"] * 128, 1)
    assert calls == [8, 1016]  # the first is measured
    _, calls = dispatch(["oooooooo"] * 128, 2)
    assert sum(calls) == 1024 and len(calls) <= 10


class Timed:
    """Takes so long for each completion, and gives up when its time is over; h hangs."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.calls: list[tuple[int, float]] = []

    async def score(self, source: int, items: Sequence[Item], timeout_s: float) -> list[Value] | str:
        self.calls.append((len(items), timeout_s))
        takes = math.inf if any(one.text == "h" for one in items) else self.seconds * len(items)
        await asyncio.sleep(min(takes, timeout_s))
        return "late" if takes > timeout_s else [1.0] * len(items)


def timed(seconds: float, groups: Sequence[str], num_workers: int = 1) -> tuple[list[list[Value]], list[Timed], float]:
    """Values, workers, and the seconds that it took in all; a completion may take 60."""

    async def run() -> tuple[list[list[Value]], float]:
        dispatcher = Dispatcher(workers, 60)
        dispatcher.start()
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(*(dispatcher.score(0, [item(kind) for kind in group]) for group in groups))
        ended = asyncio.get_running_loop().time()
        await dispatcher.close()
        return found, ended - began

    workers = [Timed(seconds) for _ in range(num_workers)]
    found, took = run_virtually(run())
    return found, workers, took


@pytest.mark.parametrize("seconds", [0.001, 0.0177, 0.5, 5.0, 20.0])
def test_no_call_fails_for_the_number_of_its_completions(seconds: float) -> None:
    """A minute for each completion, not for a call of up to 1,024."""
    groups = ["oooooooo"] * 128
    found, (worker,), took = timed(seconds, groups)
    assert found == [[1.0] * 8] * 128
    # Where the first call was too long for a minute, it was made in vain, once.
    assert took <= 1024 * seconds + 60
    assert sum(size * seconds > limit for size, limit in worker.calls) <= 1
    assert len(worker.calls) <= 10 + 1024 * seconds / 10


def test_a_completion_that_hangs_is_found_out_within_some_minutes() -> None:
    for seconds in (0.001, 0.5, 5.0):
        found, (worker,), took = timed(seconds, ["oooooooo"] * 20 + ["ooohoooo"])
        assert [value for group in found for value in group].count("late") == 1
        assert max(limit for _, limit in worker.calls) <= 60 * 2.5
        assert took <= 3 * 60 * 2.5 + 300 * seconds


def test_workers_share_what_waits_as_far_as_it_is_worth_a_call() -> None:
    found, workers, took = timed(0.0177, ["oooooooo"] * 128, num_workers=8)
    assert found == [[1.0] * 8] * 128
    assert took <= 1.5 * 1024 * 0.0177 / 8
    _, workers, took = timed(1e-5, ["oooooooo"] * 128, num_workers=8)
    assert sum(len(worker.calls) for worker in workers) <= 8 + 8


def test_a_worker_that_is_lost_for_good_is_heard_of_and_what_is_cancelled_is_not_scored() -> None:
    class Broken(Scorer):
        async def score(self, source: int, items: Sequence[Item], timeout_s: float) -> list[Value] | str:
            raise ValueError("cannot start")

    async def broken() -> None:
        dispatcher = Dispatcher([Broken()], 60)
        dispatcher.start()
        for _ in range(2):
            with pytest.raises(ValueError, match="cannot start"):
                await dispatcher.score(0, [item("o")])
        await dispatcher.close()

    async def cancelled() -> list[int]:
        worker = Scorer()
        dispatcher = Dispatcher([worker], 60)
        given_up = asyncio.create_task(dispatcher.score(0, [item("o")] * 5))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        dispatcher.start()
        assert await dispatcher.score(0, [item("o")]) == [0.0]
        await dispatcher.close()
        return worker.calls

    asyncio.run(broken())
    assert asyncio.run(cancelled()) == [1]
