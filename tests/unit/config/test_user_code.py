"""The user's own code: it is found, checked before anything starts, and named in the errors that it raises."""

import sys
from pathlib import Path
from typing import Any

import pytest

from rayswift.config.schema import RlhfConfig, SftConfig
from rayswift.config.user_code import load
from rayswift.launch import user_code
from rayswift.log import UserError

CODE = """
import types

class Holder:
    @staticmethod
    def inner(batch):
        return {"m": (1, 1)}

def metric(batch):
    return {"m": (1, 2)}

def two(batch, other):
    return {}

def loss(outputs, labels, num_items_in_batch=None):
    return outputs

def loss_without_count(outputs, labels):
    return outputs

def fails():
    raise ValueError("no such thing")

number = 3
"""


def run(**train: Any) -> SftConfig:
    return SftConfig.model_validate({"model": {"path": "m"}, "data": {"dataset": ["d"]}, "train": train})


def rollout(**fields: Any) -> RlhfConfig:
    tree = {"model": {"path": "m"}, "data": {"dataset": ["d"]}, "train": {"task": "grpo"}, "rollout": fields}
    return RlhfConfig.model_validate(tree)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `mine.py`."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(field: str, name: str) -> str:
    with pytest.raises(UserError) as caught:
        user_code._check_kind(field, name, load(field, name))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("name", ["mine.py:metric", "mine:metric", "mine.py:Holder.inner"])
def test_a_function_is_found_in_a_file_or_a_module(folder: Path, name: str) -> None:
    assert set(load("train.metrics", name)(None)) == {"m"}


def test_a_file_is_run_once_and_shadows_no_module(folder: Path) -> None:
    (folder / "json.py").write_text("import json\nvalue = [json.dumps(1)]\n")
    first = load("train.metrics", "json.py:value")
    assert load("train.metrics", str(folder / "json.py") + ":value") is first == ["1"]
    assert sys.modules["json"].__file__ != str(folder / "json.py")


def test_a_file_may_import_its_neighbour(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "other.py").write_text("def helper(batch): return {}\n")
    (folder / "deep" / "mine2.py").write_text("from other import helper\n")
    assert load("train.metrics", "deep/mine2.py:helper")(None) == {}


@pytest.mark.parametrize(
    ("field", "name", "part"),
    [
        ("train.metrics", "mine.py", "'mine.py' wants module:name or file.py:name"),
        ("train.metrics", "mine.py:", "'mine.py:' wants module:name or file.py:name"),
        ("train.metrics", "nowhere.py:f", "no file nowhere.py in "),
        ("train.metrics", "no.such.module:f", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("train.metrics", "mine.py:metrik", "mine.py has no `metrik`; did you mean metric?"),
        ("train.metrics", "mine.py:number", "is of type int, wanted a function (batch)"),
        ("train.metrics", "mine.py:two", "cannot be called as (batch): it takes (batch, other)"),
        ("train.loss", "mine.py:loss_without_count", "cannot be called as (outputs, labels, num_items_in_batch=...)"),
        ("train.plugins", "gone.py", "no file gone.py in "),
        ("train.plugins", "broken.py", "cannot be imported: ZeroDivisionError: division by zero (broken.py:2)"),
        ("train.loss", "broken_syntax.py:f", "cannot be imported: SyntaxError: "),
        ("train.plugins", "broken_exit.py", "cannot be imported: SystemExit: 3"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_reason(folder: Path, field: str, name: str, part: str) -> None:
    (folder / "broken.py").write_text("x = 1\nx / 0\n")
    (folder / "broken_syntax.py").write_text("def f(:\n")
    (folder / "broken_exit.py").write_text("import sys\nsys.exit(3)\n")
    text = message(field, name)
    assert text.startswith(f"{field} = {name!r}")
    assert part in text
    assert "\n" not in text


def test_good_names_pass(folder: Path) -> None:
    user_code._check_kind("train.loss", "mine.py:loss", load("train.loss", "mine.py:loss"))
    user_code._check_kind("train.callbacks", "mine.py:fails", load("train.callbacks", "mine.py:fails"))
    user_code._check_kind("train.plugins", "mine", load("train.plugins", "mine"))


def test_nothing_named_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    user_code.check(run())


def test_all_problems_come_in_one_error_from_a_process_of_its_own(folder: Path) -> None:
    (folder / "mine.py").write_text(CODE + "\nprint('loud')\n")
    config = run(metrics=["mine.py:metric", "mine.py:two"], loss="gone.py:f", plugins=["mine.py"])
    with pytest.raises(UserError) as caught:
        user_code.check(config)
    first, second = str(caught.value).splitlines()
    assert first.startswith("train.metrics = 'mine.py:two' cannot be called")
    assert second.startswith("train.loss = 'gone.py:f': no file gone.py")
    assert not [name for name in sys.modules if name.startswith("mine")]


def test_code_that_ends_the_process_is_an_error_too(folder: Path) -> None:
    (folder / "mine.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(UserError, match=r"importing mine.py ended the process with exit code 7"):
        user_code.check(run(plugins=["mine.py"]))


SWIFT = """
from swift.llm import Template
from swift.plugin import ORM, orms
from swift.plugin.context_manager import ContextManager, context_managers
from swift.rollout import MultiTurnSchedular
from swift.utils import get_logger, remove_response

logger = get_logger()

class Own(ContextManager):
    pass

class Length(ORM):
    def __call__(self, completions, **columns):
        return [float(len(each)) for each in completions]

class Later(ORM):
    def __call__(self, completions, **columns):
        return MultiTurnSchedular()

context_managers["own"] = Own
orms["length"] = Length
turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
assert (remove_response(turns), remove_response(turns)) == ("b", None)
"""


def test_names_of_ms_swift_that_it_lacks_are_said_at_the_start(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Plugin files import more than they use of what is asked for, so it is no error; a misspelt name shows."""
    (folder / "plugin.py").write_text(SWIFT)
    with caplog.at_level("WARNING", logger="rayswift"):
        user_code.check(rollout(reward_funcs=["plugin.py:length"]))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "plugin.py:length: not part of RaySwift are these names of ms-swift, and code that uses them fails: "
        "Template, MultiTurnSchedular (did you mean MultiTurnScheduler?)"
    )


def test_a_misspelt_registry_of_ms_swift_is_an_error_with_the_name_near_to_it(folder: Path) -> None:
    (folder / "plugin.py").write_text("from swift.plugin import ORM, ormz\normz['mine'] = ORM\n")
    with pytest.raises(
        UserError, match=r"cannot be imported: TypeError: .*plugin.py:2\); .* ormz \(did you mean orms\?"
    ):
        user_code.check(rollout(reward_funcs=["plugin.py:mine"]))


def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "_TRACKERS", {"flyte": "no_such_package", "json": "json"})
    user_code.check(run(report_to=["json", "mine"]))
    named = r"train.report_to = flyte: the package no_such_package is not installed"
    with pytest.raises(UserError, match=named):
        user_code.check(run(report_to=["flyte"]))


def test_blame(folder: Path) -> None:
    config = run(callbacks=["mine.py:fails"], metrics=["other:metric"])
    try:
        load("train.callbacks", "mine.py:fails")()
    except ValueError as error:
        line = CODE.splitlines().index('    raise ValueError("no such thing")') + 1
        assert user_code.blame(error, config) == f"train.callbacks = 'mine.py:fails' (mine.py:{line}, in fails)"
        assert user_code.blame(error, run()) is None
    assert user_code.blame(ValueError("nowhere"), config) is None


def test_the_content_of_loss_and_plugins_counts(folder: Path) -> None:
    config = run(loss="mine.py:loss", callbacks=["mine.py:fails"])
    before, none = user_code.content_hash(config), user_code.content_hash(run())
    assert before and not none
    (folder / "mine.py").write_text(CODE + "# changed\n")
    assert user_code.content_hash(config) != before
    assert user_code.content_hash(run(callbacks=["mine.py:fails"])) == none


def test_rewards_are_found_and_their_arguments_checked(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "def good(completions, *, scale=1): return [scale] * len(completions)\n"
        "class Judge:\n"
        "    def __init__(self, key): self.key = key\n"
        "    def __call__(self, completions, **columns): return [0.0] * len(completions)\n"
    )
    kwargs = {"good": {"scale": 2}, "mine.py:Judge": {"key": "k"}, "soft_overlong": {"cache_length": 4}}
    user_code.check(
        rollout(reward_funcs=["accuracy", "mine.py:good", "mine.py:Judge", "soft_overlong"], reward_kwargs=kwargs)
    )
    with pytest.raises(UserError) as caught:
        user_code.check(
            rollout(
                reward_funcs=["accurac", "soft_overlong", "mine.py:god", "mine.py:Judge", "gone.py:f", "mine.py:good"],
                reward_kwargs={"good": {"scael": 2}, "format": {}},
            )
        )
    assert [line.split(" at 0x")[0] for line in str(caught.value).splitlines()] == [
        "rollout.reward_kwargs.format is of no function in rollout.reward_funcs = ['accurac', 'soft_overlong', "
        "'mine.py:god', 'mine.py:Judge', 'gone.py:f', 'mine.py:good']",
        "rollout.reward_funcs = 'accurac' is no built-in reward; did you mean accuracy? there are accuracy, format, "
        "think_format, tag_count, cosine, repetition, soft_overlong; name your own as module:function or "
        "file.py:function",
        "rollout.reward_funcs = 'soft_overlong' with {'max_length': 512}: it needs cache_length; set "
        "rollout.reward_kwargs.soft_overlong.cache_length",
        "rollout.reward_funcs = 'mine.py:god': mine.py has no `god`; did you mean good?",
        f"rollout.reward_funcs = 'gone.py:f': no file gone.py in {folder}",
        "rollout.reward_funcs = 'mine.py:Judge' with {}: Judge.__init__() missing 1 required positional argument: "
        "'key'",
        "rollout.reward_funcs = 'mine.py:good' with {'scael': 2}: got an unexpected keyword argument 'scael'",
    ]


def test_the_content_of_rewards_counts(folder: Path) -> None:
    config = rollout(reward_funcs=["mine.py:metric", "accuracy"])
    before = user_code.content_hash(config)
    (folder / "mine.py").write_text(CODE + "# changed\n")
    assert before and user_code.content_hash(config) != before
