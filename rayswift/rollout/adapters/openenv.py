"""An environment on a server of OpenEnv: its WebSocket, one session for each episode (OpenEnv 0.10).

Actions are tools: those of an MCP environment as it lists them, else one tool `step` with the fields of its Action. The
reward is the sum of all steps. OpenEnv's own client is not needed, and would not fit beside vLLM (it wants mcp 1).
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp

from rayswift.log import UserError
from rayswift.rollout.episodes.contract import ENVIRONMENT, Tool
from rayswift.rollout.episodes.sessions import Hangs

_STEP = "step"
_MOST_BYTES = 64 << 20
_SHOWN_S = 30.0
_AGAIN_S = 0.5


class Environment:
    """An episode, as an environment of the native contract whose methods are in `tools`.

    Args:
        url: Of the server.
        actions: Names of the tools.
        is_typed: Whether the only tool takes the fields of an Action; otherwise the tools are those of an MCP
            environment.
        timeout_s: Time limit of the wait for a session of the server.
    """

    def __init__(self, url: str, actions: Sequence[str], is_typed: bool, timeout_s: float):
        self._url, self._is_typed, self._timeout_s = url, is_typed, timeout_s
        self.tools: dict[str, Tool] = {name: partial(self._call, name) for name in actions}
        self.done, self._reward = False, 0.0
        self._client: aiohttp.ClientSession | None = None

    async def reset(self, prompt: Any = None, **row: Any) -> str | None:
        """Open a session; columns of the row go to the server's `reset`, which takes those that it knows."""
        until = asyncio.get_running_loop().time() + self._timeout_s
        while True:
            try:
                return _shown(await self._opened(row)) or None
            except _Full as full:
                await self.close()
                if asyncio.get_running_loop().time() + _AGAIN_S > until:
                    raise RuntimeError(
                        f"{self._url} takes no further session ({full}); start it with a larger max_concurrent_envs"
                    ) from full
                await asyncio.sleep(_AGAIN_S)

    async def _opened(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        self._client = aiohttp.ClientSession()
        self._socket = await self._client.ws_connect(f"{self._url}/ws", max_msg_size=_MOST_BYTES)
        return await self._ask("reset", row)

    async def _call(self, name: str, /, **arguments: Any) -> str:
        action = arguments if self._is_typed else {"type": "call_tool", "tool_name": name, "arguments": arguments}
        observation = await self._ask(_STEP, action)
        if observation.get("error"):
            raise ValueError(str(observation["error"].get("message", observation["error"])))
        return _shown(observation)

    async def _ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the server's observation."""
        try:
            await self._socket.send_str(json.dumps({"type": kind, "data": data}, default=str))
            message = await self._socket.receive()
        except (aiohttp.ClientError, OSError) as error:
            raise Hangs(f"{self._url} ended the session: {error}", in_thread=False) from error
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise Hangs(f"{self._url} ended the session: {message.extra or message.data}", in_thread=False)
        answer = json.loads(message.data)
        found: Mapping[str, Any] = answer.get("data", {})
        if answer.get("type") == "error":
            _refuse(found)
        self.done = bool(found.get("done"))
        self._reward += float(found.get("reward") or 0.0)
        observation: Mapping[str, Any] = found.get("observation", {})
        return observation

    async def listed(self) -> Sequence[Mapping[str, Any]]:
        """Return the tools of an MCP environment."""
        await self.reset()
        found: Sequence[Mapping[str, Any]] = (await self._ask(_STEP, {"type": "list_tools"}))["tools"]
        return found

    async def get_reward(self) -> float:
        """Return the sum of the rewards of all steps."""
        return self._reward

    async def close(self) -> None:
        """End the session."""
        if self._client is not None:
            await self._client.close()


class _Full(Exception):
    """The server takes no further session."""


def _refuse(error: Mapping[str, Any]) -> None:
    if error.get("code") == "CAPACITY_REACHED":
        raise _Full(error.get("message"))
    problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.get("errors", ())]
    raise ValueError("; ".join(problems) or str(error.get("message")))


def _shown(observation: Mapping[str, Any]) -> str:
    """Return an observation as text: that of a tool's result, or of its only field, else JSON."""
    result = observation.get("result")
    if "tool_name" in observation:
        is_wrapped = isinstance(result, Mapping) and "data" in result
        observation = {"result": result["data"] if is_wrapped and isinstance(result, Mapping) else result}
    fields = {name: value for name, value in observation.items() if name != "metadata" and value not in (None, "", [])}
    texts = list(fields.values())
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else json.dumps(fields) if fields else ""


async def actions_of(url: str) -> tuple[list[dict[str, Any]], bool]:
    """Return JSON schemas of the tools, and whether they are one Action.

    Raises:
        UserError: no such server answers.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_SHOWN_S)) as client,
            client.get(f"{url}/schema", raise_for_status=True) as answer,
        ):
            action: dict[str, Any] = (await answer.json())["action"]
        known = action.get("properties", {})
        if "tool_name" in known:
            environment = Environment(url, (), False, _SHOWN_S)
            try:
                listed = await asyncio.wait_for(environment.listed(), _SHOWN_S)
            finally:
                await environment.close()
            found = [_schema(each["name"], each.get("description", ""), each["input_schema"]) for each in listed]
            return found, False
    except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError, RuntimeError, Hangs) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{ENVIRONMENT} = 'openenv:{url}': no environment server answers there: {reason}") from error
    fields = {name: value for name, value in known.items() if name != "metadata"}
    parameters = {**action, "properties": fields}
    return [_schema(_STEP, action.get("description", ""), parameters)], True


def _schema(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("title", "description", "additionalProperties")
    parameters = {key: value for key, value in parameters.items() if key not in left_out}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
