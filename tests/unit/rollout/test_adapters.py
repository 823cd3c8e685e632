"""OpenRLHF's agents, verl's function tools and servers of OpenEnv, each written as in its own project."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from rayswift.config.load import load as load_config
from rayswift.config.reading import paths
from rayswift.config.rollout import RolloutConfig
from rayswift.config.user_code import load
from rayswift.engines.samples import Completion, PolicyVersion, SampleRequest, Span
from rayswift.log import UserError
from rayswift.rollout.adapters import named
from rayswift.rollout.episodes import contract
from rayswift.rollout.episodes.calls import Call, Said
from rayswift.rollout.episodes.play import EpisodeLimits, play
from rayswift.rollout.episodes.sessions import Answer, Runner, Session, Start, ToolSession, Turn
from rayswift.rollout.episodes.trajectories import checksum
from rayswift.rollout.episodes.turns import Turns
from tests.unit.rollout.test_episodes import tokenizer_dir

__all__ = ["tokenizer_dir"]


async def session_of(environment: str, timeout_s: float = 5.0) -> Session:
    """The other side of an episode, as a process makes it."""
    spec = contract.spec_of(RolloutConfig(environment=environment, tool_timeout_s=timeout_s), [])
    make = await named.make(spec, Runner(ThreadPoolExecutor(2), timeout_s))
    assert make is not None
    return make()


def turn(*calls: Call) -> Turn:
    return Turn(0, "", Said("", calls), [], "stop", False)


def problem_of(**fields: Any) -> str:
    with pytest.raises(UserError) as raised:
        contract.checked(RolloutConfig(**fields))
    return str(raised.value)


# ---- OpenRLHF ----

AGENT = """
from typing import Any, Dict

import torch
from openrlhf.utils.agent import AgentExecutorBase, AgentInstanceBase, MultiTurnAgentExecutor


class AgentInstance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.step_idx = 0

    async def reset(self, states: dict, **kwargs):
        return {"observation": states["observation"] + ("" if states["label"] == "as it is" else " So:")}

    async def step(self, states: dict, **kwargs) -> Dict[str, Any]:
        done = self.step_idx >= 1
        reward = torch.tensor(0.25) if states["label"] in states["action_text"] else torch.zeros(1)
        self.step_idx += 1
        return {
            "rewards": reward,
            "scores": reward,
            "environment_feedback": "" if done else "\\nHuman: [WRONG]\\nAssistant: ",
            "done": done,
            "sampling_params": states.get("sampling_params", None),
            "extra_logs": {"seen": states["observation_text"] + states["action_text"]},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(AgentInstance)


class Own(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(AgentInstance)

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine):
        pass


class Base(AgentExecutorBase):
    pass


class Broken(AgentExecutor):
    def __init__(self):
        raise RuntimeError("no")


class Mute(AgentInstance):
    async def step(self, states, **kwargs):
        return {"rewards": 1.0, "environment_feedback": None, "done": False}


class Samples(AgentInstance):
    async def step(self, states, **kwargs):
        return {"rewards": 1.0, "environment_feedback": "", "done": False, "sampling_params": object()}


class Garbage(AgentInstance):
    async def step(self, states, **kwargs):
        return {"rewards": float("nan"), "environment_feedback": "", "done": False}
"""


@pytest.fixture
def agent(tmp_path: Path) -> str:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    return str(file)


class Direct:
    """A session as the coordinator has it, without a process."""

    def __init__(self, session: Session, start: Start):
        self._session, self._start = session, start

    async def open(self) -> Any:
        return await self._session.reset(self._start)

    async def answer(self, turn: Turn) -> Answer:
        return await self._session.answer(turn)

    async def reward(self) -> float | None:
        return await self._session.reward()


@pytest.mark.parametrize("name", ["AgentExecutor", "AgentInstance"])
@pytest.mark.parametrize("label", ["as it is", "4"])
def test_an_agents_texts_are_raw(agent: str, name: str, label: str, tokenizer_dir: Path) -> None:
    """Tokens are those of OpenRLHF: prompt, turn with its end token, feedback, turn."""
    turns = Turns(tokenizer_dir, [], {})
    end = min(turns.end_ids)
    asked: list[SampleRequest] = []
    texts = ["I think 5", "4"]

    async def generate(request: SampleRequest) -> Completion:
        asked.append(request)
        ids = np.append(turns.raw(texts[len(asked) - 1]), end).astype(np.int32)
        return Completion(request.key, ids, np.ones(len(ids), np.float32), (Span(0, PolicyVersion(1, 0)),), "stop")

    messages = [{"role": "user", "content": "2 + 2"}]
    prompt = turns.prompt(messages)
    start = Start(messages, {"label": label}, 0, turns.whole(prompt))

    async def story() -> Completion:
        session: Any = Direct(await session_of(f"{agent}:{name}"), start)
        return await play(
            SampleRequest("k", prompt, 200, 3), generate, session, turns, EpisodeLimits(None, 300, False, 400)
        )

    made = asyncio.run(story())
    played = made.trajectory
    assert played is not None
    opening = start.text + ("" if label == "as it is" else " So:")
    np.testing.assert_array_equal(played.prompt_ids, prompt if label == "as it is" else turns.raw(opening))
    feedback = turns.raw("\nHuman: [WRONG]\nAssistant: ")
    parts = [np.append(turns.raw(texts[0]), end), feedback, np.append(turns.raw(texts[1]), end)]
    np.testing.assert_array_equal(made.token_ids, np.concatenate(parts))
    assert played.written.tolist() == [n != 1 for n, part in enumerate(parts) for _ in part]
    assert checksum(played.prompt_ids, made.token_ids) == played.checksum
    assert (played.reward, played.num_turns, played.end) == (0.0 if label == "as it is" else 0.25, 2, "stop")
    assert played.infos["seen"] == opening + turns.whole(made.token_ids)


def test_a_label_that_is_missing_is_said_once(agent: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        for _ in range(2):
            session: Any = await session_of(f"{agent}:AgentExecutor")
            await session.reset(Start([{"role": "user", "content": "2 + 2"}], {"solution": "4"}, 0, "2 + 2"))

    with caplog.at_level("WARNING", "rayswift"):
        asyncio.run(story())
    said = [each.getMessage().split(",")[0] for each in caplog.records]
    assert said == ["AgentInstance: a row has no column `label`"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Own", "has a method execute of its own"),
        ("Base", "has a method execute of its own"),
        ("Broken", "cannot be made without arguments: RuntimeError: no"),
        ("Gone", "has no `Gone`"),
    ],
)
def test_an_agent_that_cannot_be_played_is_refused(agent: str, name: str, problem: str) -> None:
    assert problem in problem_of(environment=f"{agent}:{name}")


def test_an_agent_answers_all_turns(agent: str) -> None:
    assert "leave one out" in problem_of(environment=f"{agent}:AgentExecutor", tools=["calculator"])
    assert contract.checked(RolloutConfig(environment=f"{agent}:AgentExecutor")) == []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Mute", "wanted a dictionary with the text 'environment_feedback'"),
        ("Samples", "step returned sampling_params"),
        ("Garbage", "wanted a number"),
    ],
)
def test_what_an_agent_must_not_answer_fails_its_episode(agent: str, name: str, error: str) -> None:
    async def story() -> None:
        session = await session_of(f"{agent}:{name}")
        await session.reset(Start([], {}, 0, "Hi."))
        await session.answer(turn())

    with pytest.raises((TypeError, ValueError), match=error):
        asyncio.run(story())


# ---- verl ----

VERL = '''
from verl.tools.function_tool import function_tool
from verl.tools.schemas import OpenAIFunctionToolSchema, ToolResponse


@function_tool
def PREFIXadd(a: int, b: int = 1) -> dict:
    """Add.

    Args:
        a: One.
        b: The other.
    """
    return {"sum": a + b}


@function_tool("PREFIXsearch")
async def look_up(name: str) -> str:
    """Look something up.

    Args:
        name: What.
    """
    return ToolResponse(text=name.upper()), 0.5, {"hits": 1}


PARAMETERS = {"type": "object", "properties": {"x": {"type": "string"}}}
RAW = {"type": "function", "function": {"name": "PREFIXraw", "description": "Raw.", "parameters": PARAMETERS}}


@function_tool(schema=RAW)
def PREFIXraw(x):
    return ToolResponse(text=x, image=[x])


def helper():
    pass
'''


@pytest.fixture
def verl_file(tmp_path: Path) -> tuple[str, str]:
    """A file, and what its tools' names begin with: verl's registry is one for a process."""
    prefix = f"t{abs(hash(tmp_path))}_"
    file = tmp_path / "verl_tools.py"
    file.write_text(VERL.replace("PREFIX", prefix))
    return str(file), prefix


def test_all_function_tools_of_a_file_are_tools(verl_file: tuple[str, str]) -> None:
    file, prefix = verl_file
    config = RolloutConfig(tools=[file, "calculator"])
    schemas = {each["function"]["name"].removeprefix(prefix): each["function"] for each in contract.checked(config)}
    assert list(schemas) == ["add", "search", "raw", "calculator"]
    assert schemas["add"]["parameters"]["required"] == ["a"]
    assert list(schemas["search"]["parameters"]["properties"]) == ["name"]
    assert schemas["raw"]["description"] == "Raw."

    async def story() -> Answer:
        tools = contract.load_tools(config.tools)
        session = ToolSession(Runner(ThreadPoolExecutor(2), 5.0), tools, None, 1000)
        calls = ("add", {"a": 1}), ("search", {"name": "x"}), ("raw", {"x": "1"}), ("add", {"c": 1})
        return await session.answer(turn(*(Call(prefix + name, arguments) for name, arguments in calls)))

    answer = asyncio.run(story())
    said = [message["content"] for message in answer.messages]
    assert said[:2] == ['{"sum": 2}', "X"]
    assert "images and videos" in said[2]
    assert "unexpected keyword argument 'c'" in said[3]
    assert answer.failed_calls == 2


def test_a_file_without_function_tools_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text("def f():\n    pass\n")
    assert f"has no function with verl's @function_tool; name one as {file}:name" in problem_of(tools=[str(file)])
    assert "no file" in problem_of(tools=[str(tmp_path / "gone.py")])


def test_a_file_of_tools_is_found_from_other_folders(tmp_path: Path, verl_file: tuple[str, str]) -> None:
    argv = ["--model", "m", "--dataset", "d", "--rlhf_type", "grpo", "--tools", "verl_tools.py", "calculator"]
    config = load_config("rlhf", [*argv, "--reward_funcs", "accuracy"]).config
    made = paths.absolute(config, tmp_path)
    assert made.rollout.tools == [verl_file[0], "calculator"]
    assert list(paths.needed(config, tmp_path, paths.FOR_REWARDS).values()) == [Path("verl_tools.py")]
    assert load("rollout.tools", verl_file[0]).__name__.startswith("verl_tools_")


# ---- OpenEnv ----

ACTION = {
    "additionalProperties": False,
    "description": "Guess the number.",
    "properties": {
        "metadata": {"type": "object"},
        "number": {"description": "The guess.", "title": "Number", "type": "integer"},
    },
    "required": ["number"],
    "title": "Guess",
    "type": "object",
}
CALL_TOOL = {
    "properties": {"type": {"const": "call_tool"}, "tool_name": {}, "arguments": {}},
    "title": "CallToolAction",
}
LISTED = {"name": "echo", "description": "Echo.", "input_schema": {"type": "object", "properties": {"message": {}}}}


class Server:
    """A server as OpenEnv 0.10 writes it to the wire, with one session; answers are those of the real one."""

    def __init__(self, is_typed: bool):
        self.is_typed, self.num_sessions, self.rows = is_typed, 0, list[Any]()

    async def schema(self, request: web.Request) -> web.Response:
        return web.json_response({"action": ACTION if self.is_typed else CALL_TOOL})

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.num_sessions:
            error = {"message": "Server at capacity: 1/1 sessions active.", "code": "CAPACITY_REACHED"}
            await socket.send_json({"type": "error", "data": error})
            return socket
        self.num_sessions += 1
        try:
            async for message in socket:
                asked = json.loads(message.data)
                if asked["data"].get("number") == 13:
                    break
                await socket.send_json(self.reset(asked) if asked["type"] == "reset" else self.step(asked["data"]))
        finally:
            self.num_sessions -= 1
        return socket

    def reset(self, asked: Any) -> Any:
        self.rows.append(asked["data"])
        observation = {"metadata": {}, "text": " Guess."} if self.is_typed else {"metadata": {"message": "ready"}}
        return {"type": "observation", "data": {"observation": observation, "reward": None, "done": False}}

    def step(self, action: Any) -> Any:
        if action.get("type") == "list_tools":
            found: Any = {"metadata": {}, "tools": [LISTED]}
        elif "tool_name" in action:
            message = action["arguments"].get("message")
            error = None if message else {"error_type": "execution_error", "message": "Error calling tool 'echo'"}
            found = {"metadata": {}, "tool_name": "echo", "result": message and {"data": message}, "error": error}
        elif not isinstance(action.get("number"), int):
            errors = [{"type": "missing", "loc": ["number"], "msg": "Field required"}]
            return {
                "type": "error",
                "data": {"message": "Invalid message", "code": "VALIDATION_ERROR", "errors": errors},
            }
        elif action["number"] < 0:
            return {"type": "error", "data": {"message": "negative", "code": "EXECUTION_ERROR"}}
        else:
            won = action["number"] == 5
            observation = {"metadata": {}, "text": "right" if won else "wrong", "left": None if won else 3}
            data = {"observation": observation, "reward": 1.0 if won else -0.25, "done": won}
            return {"type": "observation", "data": data}
        return {"type": "observation", "data": {"observation": found, "reward": None, "done": False}}


@asynccontextmanager
async def serving(is_typed: bool) -> AsyncIterator[tuple[Server, str]]:
    server = Server(is_typed)
    application = web.Application()
    application.add_routes([web.get("/schema", server.schema), web.get("/ws", server.socket)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield server, f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def with_server(is_typed: bool, story: Callable[[Server, str], Coroutine[Any, Any, Any]]) -> Any:
    async def answer() -> Any:
        async with serving(is_typed) as (server, url):
            return await story(server, url)

    return asyncio.run(answer())


START = Start([{"role": "user", "content": "Hi."}], {"level": 2}, 7)


def guess(*numbers: Any) -> Turn:
    return turn(*(Call("step", {"number": number}) for number in numbers))


def test_the_fields_of_an_action_are_the_arguments_of_step() -> None:
    async def story(server: Server, url: str) -> None:
        (schema,) = await asyncio.to_thread(contract.checked, RolloutConfig(environment=f"openenv:{url}/"))
        assert schema["function"]["description"] == "Guess the number."
        assert schema["function"]["parameters"] == {
            "type": "object",
            "properties": {"number": ACTION["properties"]["number"]},  # type: ignore[index]
            "required": ["number"],
        }
        session = await session_of(f"openenv:{url}")
        assert await session.reset(START) == [{"role": "user", "content": "Hi. Guess."}]
        assert server.rows == [{"level": 2, "seed": 7}]
        wrong = await session.answer(guess(None, -1, 4))
        right = await session.answer(guess(5))
        assert [message["content"] for message in wrong.messages] == [
            "{'error': 'number: Field required'}",
            "{'error': 'negative'}",
            '{"text": "wrong", "left": 3}',
        ]
        assert (wrong.failed_calls, wrong.done) == (2, False)
        assert (right.messages[0]["content"], right.done) == ("right", True)
        assert await session.reward() == 0.75
        await session.close()

    with_server(True, story)


def test_tools_of_an_mcp_environment_are_called_by_their_names() -> None:
    async def story(server: Server, url: str) -> None:
        (schema,) = await asyncio.to_thread(contract.checked, RolloutConfig(environment=f"openenv:{url}"))
        assert schema["function"]["name"] == "echo"
        session = await session_of(f"openenv:{url}")
        assert await session.reset(START) is None
        answer = await session.answer(turn(Call("echo", {"message": "hi"}), Call("echo", {}), Call("step", {})))
        said = [message["content"] for message in answer.messages]
        assert said[0] == "hi"
        assert "Error calling tool 'echo'" in said[1]
        assert "there is no tool step; there are echo" in said[2]
        await session.close()

    with_server(False, story)


def test_an_episode_waits_for_a_session_of_the_server_and_says_that_it_has_none() -> None:
    async def story(server: Server, url: str) -> None:
        first, second = await session_of(f"openenv:{url}"), await session_of(f"openenv:{url}", 4.0)
        await first.reset(START)
        with pytest.raises(Exception, match="max_concurrent_envs"):
            await second.reset(START)
        await second.close()
        third = await session_of(f"openenv:{url}", 20.0)
        waiting = asyncio.ensure_future(third.reset(START))
        await asyncio.sleep(0.1)
        await first.close()
        assert await waiting is not None
        await third.close()

    with_server(True, story)


def test_a_session_that_the_server_ends_fails_the_episode() -> None:
    async def story(server: Server, url: str) -> Answer:
        session = await session_of(f"openenv:{url}")
        await session.reset(START)
        answer = await session.answer(guess(13, 4))
        await session.close()
        return answer

    answer = with_server(True, story)
    assert "ended the session" in answer.problem
    assert not answer.hangs


def test_a_server_that_is_not_there_is_said_before_anything_starts() -> None:
    assert "no environment server answers there" in problem_of(environment="openenv:http://127.0.0.1:1")
    assert "no environment server answers there" in problem_of(environment="openenv:somewhere")
