"""Tools and environments in real processes, in a process with its own Ray; prints the results as JSON.

python -m tests.ray.tool_processes FOLDER
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray

from rayswift.config.load import load
from rayswift.rollout.episodes.calls import Call, Said
from rayswift.rollout.episodes.hosts import EpisodeFailed, Hosts, RemoteSession
from rayswift.rollout.episodes.sessions import Start, Turn
from rayswift.rollout.episodes.supply import hosts_of

HERE = Path(__file__).resolve()
BASE = ("--rlhf_type", "grpo", "--model", "examples/tiny", "--data.dataset", "none", "--reward_funcs", "accuracy")


def add(first: int, second: int) -> Any:
    """Add, unless it is asked for something else.

    Args:
        first: A number.
        second: Another one.
    """
    if first == 1:
        raise ValueError("not this one")
    if first == 2:
        return "9" * 10_000_000
    if first == 3:
        time.sleep(1000)
    if first == 4:
        os._exit(1)
    return first + second


class Game:
    """Numbers, and a way to wait for ever."""

    def reset(self, number: int | None = None, **row: Any) -> None:
        """Begin."""
        self.number, self.won = number if number is not None else row["prompt"][0]["number"], False

    def guess(self, number: int) -> str:
        """Guess.

        Args:
            number: The guess.
        """
        self.won = number == self.number
        return "right" if self.won else "higher"

    def wait(self) -> None:
        """Wait."""
        time.sleep(1000)

    def get_reward(self) -> float:
        """Whether the last guess was right."""
        return float(self.won)


def turn(number: int, *calls: Call) -> Turn:
    return Turn(number, "", Said("", calls), [], "stop", False)


def start(**columns: Any) -> Start:
    return Start([{"role": "user", "content": "Go."}], columns, 0)


async def tools(hosts: Hosts) -> list[str]:
    """What each call is answered; one process is enough, as it is replaced."""
    answers = []
    for first in (5, 1, 2, 3, 4, 6):
        session = RemoteSession(hosts, f"tools:{first}", start())
        answer = await session.answer(turn(0, Call("add", {"first": first, "second": 7})))
        answers.append(str(answer.messages[0]["content"]))
        session.close()
    return answers


async def game(hosts: Hosts, number: int, between: Any = None) -> list[Any]:
    """Two guesses and the reward; something happens between them."""
    session = RemoteSession(hosts, f"game:{number}", start(number=number))
    await session.open()
    found: list[Any] = []
    for place, guess in enumerate((1, 5)):
        found += [(await session.answer(turn(place, Call("guess", {"number": guess})))).messages[0]["content"]]
        if between is not None and place == 0:
            between()
    return [*found, await session.reward()]


def send(number: signal.Signals) -> None:
    """To all processes of environments."""
    for process in psutil.Process().children(recursive=True):
        if "ray::EnvironmentProcess" in " ".join(process.cmdline()):
            process.send_signal(number)


async def reason(hosts: Hosts, columns: dict[str, Any], *calls: Call) -> str:
    session = RemoteSession(hosts, f"reason:{len(calls)}", start(**columns))
    try:
        await session.open()
        await session.answer(turn(0, *calls))
    except EpisodeFailed as failed:
        return str(failed)
    finally:
        session.close()
    return "none"


async def tell(folder: Path) -> dict[str, Any]:
    def hosts(*flags: str) -> Hosts:
        config: Any = load("rlhf", [*BASE, *flags, "--tool_timeout_s", "2", "--max_tool_response_chars", "100"]).config
        made = hosts_of(config, 1, HERE.parents[2], folder)
        assert made is not None
        return made

    results: dict[str, Any] = {}
    alone = hosts("--tools", f"{HERE}:add")
    await alone.start()
    results["tools"] = await tools(alone)
    await alone.close()
    played = hosts("--environment", f"{HERE}:Game")
    await played.start()
    results["games"] = [await game(played, 7)]
    results["games"].append(await game(played, 5, lambda: send(signal.SIGKILL)))
    results["games"].append(await game(played, 5, lambda: send(signal.SIGSTOP)))
    results["hangs"] = await reason(played, {"number": 1}, Call("wait", {}))
    results["raises"] = await reason(played, {})
    await played.close()
    return results


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    (folder / "results.json").write_text(json.dumps(asyncio.run(tell(folder))))
    ray.shutdown()


if __name__ == "__main__":
    main()
