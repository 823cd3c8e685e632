"""Calls in a model's text, answers as tokens, and tools in a process, without Ray."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from tokenizers import AddedToken, Tokenizer

from rayswift.config.load import load as load_config
from rayswift.config.rollout import RolloutConfig
from rayswift.data.encode.template import ChatTemplate
from rayswift.launch.dry_run import dry_run
from rayswift.log import UserError
from rayswift.rollout.environments import sandbox
from rayswift.rollout.environments.calculator import calculator
from rayswift.rollout.environments.guess_number import GuessNumber
from rayswift.rollout.environments.sandbox import python
from rayswift.rollout.episodes import contract
from rayswift.rollout.episodes.calls import Call, CallFormat, Said, format_of, parse
from rayswift.rollout.episodes.process import EnvironmentProcess
from rayswift.rollout.episodes.sessions import Answer, Hangs, Runner, Start, ToolSession, Turn, cut
from rayswift.rollout.episodes.turns import Turns

TINY = Path(__file__).parents[3] / "examples" / "tiny"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Templates of well-known families, as TRL ships them: the format of their calls, and what ends a turn.
FAMILIES: dict[str, tuple[CallFormat, str]] = {
    "qwen2_5": ("hermes", "<|im_end|>"),
    "qwen3": ("hermes", "<|im_end|>"),
    "llama3_1": ("llama3_json", "<|eot_id|>"),
    "llama3_2": ("llama3_json", "<|eot_id|>"),
}
SCHEMA = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "A."}}},
    },
}


@pytest.mark.parametrize(
    ("text", "call_format", "said"),
    [
        ("12", "hermes", Said("12")),
        (
            'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
            "hermes",
            Said("I add.", (Call("add", {"a": 1}),)),
        ),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call><tool_call>{"name": "b"}</tool_call>',
            "hermes",
            Said("", (Call("add", {"a": 1}), Call("b", {}))),
        ),
        (
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx y\n</parameter>\n"
            "</function>\n</tool_call>",
            "hermes",
            Said("", (Call("add", {"a": 1, "b": "x y"}),)),
        ),
        ('{"name": "add", "parameters": {"a": 1}}', "llama3_json", Said("", (Call("add", {"a": 1}),))),
        (
            '<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"name": "b", "parameters": {}}',
            "llama3_json",
            Said("", (Call("add", {"a": 1}), Call("b", {}))),
        ),
        ('{"a": 1}', "llama3_json", Said('{"a": 1}')),
        (
            'So: [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]',
            "mistral",
            Said("So:", (Call("add", {"a": 1}),)),
        ),
        (
            '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]b{}',
            "mistral",
            Said("", (Call("add", {"a": 1}), Call("b", {}))),
        ),
    ],
)
def test_calls_are_found(text: str, call_format: CallFormat, said: Said) -> None:
    assert parse(text, call_format) == said


@pytest.mark.parametrize(
    ("text", "call_format"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call>', "hermes"),
        ("<tool_call>", "hermes"),
        ("<tool_call>[1]</tool_call>", "hermes"),
        ('<tool_call>{"name": "add", "arguments": 3}</tool_call>', "hermes"),
        ('{"name": "add", "parameters": {"a"', "llama3_json"),
        ("[TOOL_CALLS]nothing", "mistral"),
        ("[TOOL_CALLS]add[ARGS]{", "mistral"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "hermes"),
        (f'<tool_call>{{"name": "add", "arguments": {"9" * 5000}}}</tool_call>', "hermes"),
        (f'<tool_call>{{"name": "add", "arguments": "{"[" * 100_000}"}}</tool_call>', "hermes"),
        (f'{{"name": "add", "parameters": {{"a": {"9" * 5000}}}}}', "llama3_json"),
        (f'[TOOL_CALLS]add[ARGS]{{"a": {"9" * 5000}}}', "mistral"),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "hermes"),
        ('<tool_call>{"name": "\\ud800", "arguments": 3}</tool_call>', "hermes"),
        ('<tool_call>{"name": "add", "arguments": {"a": ["\\udfff"]}}</tool_call>', "hermes"),
    ],
)
def test_a_call_that_cannot_be_read_is_a_call_with_a_problem(text: str, call_format: CallFormat) -> None:
    (call,) = parse(text, call_format).calls
    assert call.arguments is None
    assert call.problem
    json.dumps([parse(text, call_format).message, call.name], ensure_ascii=False).encode()


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000], ids=["digits", "depth"])
def test_a_parameter_that_json_cannot_read_is_its_text(value: str) -> None:
    text = f"<tool_call><function=add><parameter=a>{value}</parameter></function></tool_call>"
    assert parse(text, "hermes").calls == (Call("add", {"a": value}),)


def test_marks_that_a_model_repeats_are_read_in_time_that_grows_as_they_do() -> None:
    def seconds(number: int) -> float:
        begin = time.process_time()
        parse("<tool_call><function=a>" + "<parameter=a>" * number, "hermes")
        return time.process_time() - begin

    few = min(seconds(500) for _ in range(3))
    assert seconds(8000) < few * 16 * 4  # linear: 16 times; quadratic: 256 times


def tokenizer_folder(folder: Path, template: str, end: str) -> Path:
    """The tiny tokenizer with another end token."""
    made = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    made.add_special_tokens([AddedToken(end, special=True)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end, "bos_token": "<bos>"}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_the_template_writes_behind_the_models_turn(family: str, tmp_path: Path) -> None:
    call_format, end = FAMILIES[family]
    source = (TEMPLATES / f"{family}.jinja").read_text()
    turns = Turns(tokenizer_folder(tmp_path, source, end), [SCHEMA], {})
    assert turns.call_format == call_format == format_of(ChatTemplate(source, {"eos_token": end}), [SCHEMA])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    template = ChatTemplate(source, {"eos_token": end, "bos_token": "<bos>"})
    asked = {"role": "user", "content": "What is 1 + 2?"}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    heard = {"role": "tool", "name": "add", "content": "3 <|im_end|> é"}
    whole = template.render([asked, said, heard], [SCHEMA], True)
    ids = turns.answer([heard], ended=True)
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    assert text
    assert whole.endswith(end + text)
    whole_end = tokenizer.decode(turns.answer([heard], ended=False).tolist(), skip_special_tokens=False)
    assert whole_end == end + text


def test_answers_to_several_calls_follow_a_template_that_takes_one_call_in_a_turn(tmp_path: Path) -> None:
    source = (TEMPLATES / "llama3_1.jinja").read_text()
    turns = Turns(tokenizer_folder(tmp_path, source, "<|eot_id|>"), [SCHEMA], {})
    heard = [{"role": "tool", "name": "add", "content": content} for content in ("3", "4")]
    first, second, both = (turns.whole(turns.answer(each, True)) for each in (heard[:1], heard[1:], heard))
    opening = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert both == first.removesuffix(opening) + second


def test_templates_that_cannot_take_tools_are_refused(tmp_path: Path) -> None:
    def problem(template: str) -> str:
        with pytest.raises(UserError) as raised:
            Turns(tokenizer_folder(tmp_path, template, "<|im_end|>"), [SCHEMA], {})
        return str(raised.value)

    plain = "{% for m in messages %}{{ m.role + m.content }}<|im_end|>{% endfor %}"
    assert "does not show the model the tool add" in problem(plain)
    shows = "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    assert "in no known format" in problem(shows + plain)
    calls = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    deaf = "{% for m in messages if m.role != 'tool' %}{{ m.role + m.content }}" + calls + "<|im_end|>{% endfor %}"
    assert "leaves out what a tool answers" in problem(shows + deaf)
    assert "model.chat_template" in problem("{{ raise_exception('no tools here') }}")


# ---- the contract ----


def problem_of(tmp_path: Path, source: str, **fields: Any) -> str:
    file = tmp_path / "mine.py"
    file.write_text(source)
    given = {name: [f"{file}:{value}"] if name == "tools" else f"{file}:{value}" for name, value in fields.items()}
    with pytest.raises(UserError) as raised:
        contract.checked(RolloutConfig(**given))
    return str(raised.value)


def test_a_tool_without_types_or_words_is_refused(tmp_path: Path) -> None:
    source = 'def f(a):\n    """Do.\n\n    Args:\n        a: It.\n    """\n'
    assert "type hint" in problem_of(tmp_path, source, tools="f")


NAMED = '\n    """Do.\n\n    Args:\n        a: It.\n    """\n'


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def f(*a: int):" + NAMED, "its argument *a: int cannot be given by a name"),
        ("def f(**a: int):" + NAMED, "its argument **a: int cannot be given by a name"),
        ("def f(a: int, /):" + NAMED, "its argument a: int cannot be given by a name"),
        ("def f(a: int):" + NAMED + "    yield a\n", "it is a generator"),
        ("async def f(a: int):" + NAMED + "    yield a\n", "it is a generator"),
        ("import functools\nf = functools.partial(print, 1)\n", "is of type partial, wanted a function"),
        ("class f:\n    pass\n", "is of type type, wanted a function"),
        ("f = 3\n", "is of type int, wanted a function"),
        ("import sys\nsys.exit(3)\n", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_tool_that_cannot_be_called_is_refused(tmp_path: Path, source: str, problem: str) -> None:
    assert problem in problem_of(tmp_path, source, tools="f")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--tools", "calculatr"], "rollout.tools = 'calculatr' is no built-in tool"),
        (["--tools", "mine.py:f"], "rollout.tools = 'mine.py:f' has no `f`"),
        (["--environment", "mine.py:Leaves"], "importing mine.py:Leaves ended the process with exit code 4"),
    ],
)
def test_a_dry_run_looks_at_tools_and_environment(
    flags: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import os, threading, time\nthreading.Thread(target=time.sleep, args=(900,)).start()\n"
    (tmp_path / "mine.py").write_text(source + "class Leaves:\n    def __init__(self):\n        os._exit(4)\n")
    monkeypatch.chdir(tmp_path)
    argv = ["--model", "m", "--dataset", "d", "--rlhf_type", "grpo", "--reward_funcs", "accuracy", *flags]
    with pytest.raises(UserError) as raised:
        dry_run(load_config("rlhf", argv).config)
    assert problem.replace(" has no", ": mine.py has no") in str(raised.value)


def test_an_environment_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert "reset(**row)" in problem_of(tmp_path / "a", "class E:\n    pass\n", environment="E")
    no_reward = "class E:\n    def reset(self):\n        pass\n"
    assert "no get_reward()" in problem_of(tmp_path / "b", no_reward, environment="E")
    (tmp_path / "d").mkdir()
    leaves = "class E:\n    def __init__(self):\n        raise SystemExit(3)\n"
    assert "cannot be made without arguments: SystemExit: 3" in problem_of(tmp_path / "d", leaves, environment="E")
    needs = "class E:\n    def __init__(self, x):\n        pass\n"
    assert "cannot be made without arguments" in problem_of(tmp_path / "c", needs, environment="E")


def test_schemas_are_those_of_the_tools_and_of_the_environments_methods() -> None:
    found = contract.checked(RolloutConfig(tools=["calculator"], environment="guess_number"))
    assert [each["function"]["name"] for each in found] == ["calculator", "guess"]
    assert contract.environment_name(RolloutConfig(environment="guess_number")) == "GuessNumber"


# ---- sessions ----


class Rude:
    """Does everything that an environment should not do."""

    def reset(self, what: str, **row: Any) -> Any:
        self.what = what
        return {"text": " Go.", "garbage": 7}.get(what)

    def fail(self) -> None:
        """Raise."""
        raise KeyError("no")

    def leave(self) -> None:
        """Exit."""
        raise SystemExit(3)

    def flood(self) -> str:
        """Say too much."""
        return "x" * 10_000_000

    def halves(self) -> str:
        """Say half of a pair."""
        return "\ud800"

    async def hang(self) -> None:
        """Wait for ever."""
        await asyncio.sleep(1e6)

    def get_reward(self) -> Any:
        return "much" if self.what == "garbage reward" else 1.0


def turn(*names: str, number: int = 0, last: bool = False) -> Turn:
    return Turn(number, "", Said("", tuple(Call(name, {}) for name in names)), [], "stop", last)


def in_session(story: Callable[[ToolSession], Any], environment: Any = None, timeout_s: float = 0.2) -> Any:
    async def listed() -> Any:
        with ThreadPoolExecutor(4) as threads:
            session = ToolSession(Runner(threads, timeout_s), {"calculator": calculator}, environment, 1000)
            return await story(session)

    return asyncio.run(listed())


def start(**columns: Any) -> Start:
    return Start([{"role": "user", "content": "Hi."}], columns, 5)


def test_what_a_tool_raises_is_its_answer() -> None:
    async def story(session: ToolSession) -> Answer:
        await session.reset(start(what="text"))
        return await session.answer(turn("fail", "leave", "nothing", "flood", "halves"))

    answer = in_session(story, Rude())
    said = [message["content"] for message in answer.messages]
    assert said[0] == str({"error": "'no'"})
    assert "there is no tool nothing; there are calculator, " in said[2]
    assert len(said[3]) < 1100
    assert "9999000 characters left out" in said[3]
    said[4].encode()
    assert (answer.calls, answer.failed_calls, answer.done, answer.problem) == (5, 3, False, "")


def test_a_method_that_hangs_ends_the_episode_and_a_tool_only_its_call() -> None:
    async def story(session: ToolSession) -> Answer:
        await session.reset(start(what=""))
        return await session.answer(turn("hang", "fail"))

    answer = in_session(story, Rude())
    assert answer.problem.startswith("hang: no answer within 0.2 s (rollout.tool_timeout_s)")
    assert not answer.hangs  # a coroutine can be ended


def test_reset_may_add_to_the_prompt() -> None:
    assert in_session(lambda session: session.reset(start(what="text")), Rude()) == [
        {"role": "user", "content": "Hi. Go."}
    ]
    assert in_session(lambda session: session.reset(start(what="")), Rude()) is None
    with pytest.raises(TypeError, match="reset returned int"):
        in_session(lambda session: session.reset(start(what="garbage")), Rude())


def test_tools_are_not_asked_behind_the_last_turn_but_an_environment_is() -> None:
    async def story(session: ToolSession) -> tuple[Answer, Answer]:
        await session.reset(start(number=5, guesses=1))
        tools = await session.answer(turn("calculator", last=True))
        call = Turn(1, "", Said("", (Call("guess", {"number": 5}),)), [], "stop", True)
        return tools, await session.answer(call)

    game = GuessNumber()
    tools, guess = in_session(story, game)
    assert (tools.calls, guess.calls, guess.done) == (0, 1, True)
    assert game.get_reward() == 1.0


@pytest.mark.parametrize(("guesses", "numbers", "wanted"), [(5, (5, 6), (1, 1.0)), (2, (1, 2, 3, 4, 5), (2, 0.0))])
def test_no_call_is_made_after_the_one_that_ends_an_episode(
    guesses: int, numbers: tuple[int, ...], wanted: tuple[int, float]
) -> None:
    async def story(session: ToolSession) -> Answer:
        await session.reset(start(number=5, guesses=guesses))
        calls = tuple(Call("guess", {"number": number}) for number in numbers)
        return await session.answer(Turn(0, "", Said("", calls), [], "stop", False))

    game = GuessNumber()
    answer = in_session(story, game)
    assert answer.done
    assert (answer.calls, game.get_reward()) == (len(answer.messages), wanted[1])
    assert answer.calls == wanted[0]


def test_an_error_in_a_process_is_reported() -> None:
    async def story(what: str) -> tuple[Any, Any]:
        spec = contract.EnvironmentSpec((), f"{__file__}:Rude", 0.2, 1000, 2, None)
        process = EnvironmentProcess(spec, TINY, TINY / "logs", "tools-0")
        process._run = Runner(ThreadPoolExecutor(1), 0.2)
        process._adapter, process._make, process._tools = None, Rude, {}
        opening = await process.open("k", start(what=what))
        return opening, await process.close("k")

    opening, _ = asyncio.run(story("garbage"))
    assert opening.problem.startswith("reset raised TypeError: reset returned int")
    _, closing = asyncio.run(story("garbage reward"))
    assert closing.problem.startswith("get_reward raised TypeError: the reward is 'much'")


def test_a_call_that_waits_for_a_thread_does_not_hang() -> None:
    async def story() -> list[Any]:
        with ThreadPoolExecutor(1) as threads:
            run = Runner(threads, 0.5)
            return await asyncio.gather(*(run(time.sleep, 0.2) for _ in range(6)))

    assert asyncio.run(story()) == [None] * 6


def test_a_call_that_waits_for_a_thread_that_hangs_ends() -> None:
    release = threading.Event()

    async def story() -> list[Any]:
        run = Runner(ThreadPoolExecutor(1), 0.2)
        found = await asyncio.gather(run(release.wait), run(time.sleep, 0), return_exceptions=True)
        release.set()
        return found

    hangs = asyncio.run(story())
    assert [(type(each), each.in_thread) for each in hangs] == [(Hangs, True)] * 2


def test_arguments_may_have_any_name() -> None:
    def named(function: int, call: int, timeout_s: int) -> int:
        return function + call + timeout_s

    async def story() -> Answer:
        session = ToolSession(Runner(ThreadPoolExecutor(1), 5.0), {"named": named}, None, 1000)
        call = Call("named", {"function": 1, "call": 2, "timeout_s": 3})
        return await session.answer(Turn(0, "", Said("", (call,)), [], "stop", False))

    assert asyncio.run(story()).messages[0]["content"] == "6"


def test_an_answer_that_is_no_text_is_written_within_the_limit() -> None:
    class Slow:
        def __str__(self) -> str:
            time.sleep(1)
            return "slow"

    def slow() -> Slow:
        return Slow()

    async def story(tool: Any) -> Answer:
        with ThreadPoolExecutor(1) as threads:
            return await ToolSession(Runner(threads, 0.2), {"t": tool}, None, 1000).answer(turn("t"))

    assert "no answer within 0.2 s" in asyncio.run(story(slow)).messages[0]["content"]
    for value, text in ((None, "None"), (b"x", "b'x'"), ([1], "[1]")):
        assert asyncio.run(story(lambda value=value: value)).messages[0]["content"] == text


@pytest.mark.parametrize("done", [True, np.True_, 1])
def test_whatever_is_true_ends_an_episode(done: Any) -> None:
    game = GuessNumber()

    async def story(session: ToolSession) -> Answer:
        await session.reset(start(number=5, guesses=9))
        answer = await session.answer(Turn(0, "", Said("", (Call("guess", {"number": 4}),)), [], "stop", False))
        assert not answer.done
        session._environment.done = done
        return await session.answer(turn("calculator"))

    assert in_session(story, game).done


# ---- what is shipped ----


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1234*5678", "7006652"), ("(3 + 4) * -2", "-14"), ("7/2", "3.5"), ("8/2", "4"), ("2**10", "1024"), ("7%4", "3")],
)
def test_the_calculator_works_out(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize("expression", ["__import__('os')", "a+1", "1+", "9**9**9", "'x'*3", "1" * 1000, "(" * 400])
def test_the_calculator_refuses(expression: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        calculator(expression)


def test_the_games_number_is_the_same_for_a_group() -> None:
    found = []
    for seed in (1, 1, 2):
        game = GuessNumber()
        game.reset(seed=seed)
        found.append([game.guess(guess) for guess in (16, 8, 24)])
    assert found[0] == found[1]


in_a_sandbox = pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem())


@in_a_sandbox
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(6 * 7)", "42"),
        ("import threading; t = threading.Thread(target=print, args=(7,)); t.start(); t.join()", "7"),
        ("open('a', 'w').write('x'); import os; os.rename('a', 'b'); print(open('b').read()); os.remove('b')", "x"),
        ("import tempfile, ssl, sqlite3, zoneinfo; tempfile.TemporaryFile(); print(zoneinfo.ZoneInfo('UTC'))", "UTC"),
        ("for n in range(10**5): open(str(n), 'w').close()", "[stopped: it wrote more than 60 files]"),
        ("for n in range(20): open(str(n), 'wb').write(b'0' * 9_000_000)", "[stopped: it wrote more than 50 MB]"),
        ("bytearray(10**10)", "MemoryError"),
        ("open('f', 'wb').write(b'0' * 10**8)", "File too large"),
        ("print('x' * 10**6)", "[the output is longer]"),
        ("1 / 0", "ZeroDivisionError: division by zero\n[ended with exit code 1]"),
    ],
)
def test_a_program_runs_within_its_limits(code: str, said: str) -> None:
    assert python(code).endswith(said) or said in python(code)


ESCAPES = """
socket.socket()
os.fork()
subprocess.run(["ls"])
os.execv("/bin/true", ["true"])
os.kill(os.getppid(), 0)
fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())
resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
os.setpriority(os.PRIO_PROCESS, os.getppid(), 0)
os.memfd_create("x")
open("/dev/shm/out", "w")
open("../escaped-program", "w")
open(f"/proc/{os.getppid()}/environ", "rb")
open(f"/proc/{os.getppid()}/mem", "r+b")
os.listdir("/etc")
os.listdir("/proc")
os.chmod("/tmp", 0o1777)
os.utime("/tmp")
os.truncate("/tmp", 0)
os.chroot("/tmp")
os.mkfifo(".output")
os.mkdir("d")
os.symlink("/etc", "l")
refused(libc.mount(b"none", b".", b"tmpfs", 0, None))
refused(libc.shmget(0, 1 << 20, 0o1600))
refused(libc.msgget(0, 0o1600))
refused(libc.unshare(0x10000000))
"""


@in_a_sandbox
def test_a_program_cannot_get_out() -> None:
    code = f"""
import ctypes, fcntl, os, resource, socket, subprocess
libc = ctypes.CDLL(None)
def refused(result):
    if result < 0:
        raise PermissionError
for line in {ESCAPES.strip().splitlines()!r}:
    try:
        exec(line)
    except (PermissionError, ValueError):
        continue
    except Exception as error:
        line += f": {{error!r}}"
    print("not refused:", line)
"""
    assert python(code) == ""


def test_a_cut_keeps_both_ends() -> None:
    assert cut("a" * 50 + "b" * 50, 10) == "aaaaa [90 characters left out] bbbbb"
