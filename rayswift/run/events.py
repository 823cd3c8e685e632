"""`events.jsonl`: each launch, start of the workers, failure and end of a run.

A launch without an `end` was killed. The driver writes `launch` and `end`, rank 0 `start`, and Ray Train's controller
`failure`, each as one small append.
"""

import json
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

EVENTS = "events.jsonl"
State = Literal["running", "finished", "failed", "interrupted", "killed"]


@dataclass(frozen=True)
class Event:
    """One line. time_s: since the epoch; step: steps done before it; workers: data-parallel size.

    text: for a launch the checkpoint that it continues, for a failure or an end the error.
    """

    kind: Literal["launch", "start", "failure", "end"]
    time_s: float
    step: int | None = None
    workers: int | None = None
    state: State | None = None
    text: str = ""


@dataclass(frozen=True)
class Start:
    """A worker group: when, at which step, with how many workers, why it was started, and how it ended."""

    time_s: float
    step: int
    workers: int | None
    why: str
    ended: str


def record(run_dir: Path, kind: str, **facts: Any) -> None:
    """Append an event with the current time; `facts` are fields of `Event`."""
    line = json.dumps({"kind": kind, "time_s": time.time(), **facts})  # ASCII: any text stays on one line
    path = run_dir / EVENTS
    whole = not path.exists() or path.stat().st_size == 0 or path.read_bytes()[-1:] == b"\n"
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n" if whole else f"\n{line}\n")


def read(run_dir: Path) -> list[Event]:
    """All events, oldest first, without lines that a kill cut off."""
    path = run_dir / EVENTS
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            events.append(Event(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return events


def starts(events: list[Event]) -> list[Start]:
    """Every start of the workers, and every launch that ended before one."""
    found: list[Start] = []
    launch: Event | None = None
    before: Event | None = None  # the start before, in the same launch
    failure = ""
    for event, following in zip_longest(events, events[1:]):
        if event.kind == "launch":
            launch, before, failure = event, None, ""
            if following is None or following.kind in ("launch", "end"):
                found.append(
                    Start(event.time_s, event.step or 0, None, _why_launched(event), _how_ended(following, event))
                )
        elif event.kind == "failure":
            failure = event.text
        elif event.kind == "start":
            why = _why_restarted(before, event, failure) if before else _why_launched(launch)
            found.append(Start(event.time_s, event.step or 0, event.workers, why, _how_ended(following, event)))
            before, failure = event, ""
    return found


def state(events: list[Event]) -> State:
    """The recorded state of the last launch; a killed one stays `running`."""
    last = events[-1] if events else None
    return last.state or "running" if last and last.kind == "end" else "running"


def _why_launched(launch: Event | None) -> str:
    return f"continued from {launch.text}" if launch and launch.text else "new run"


def _why_restarted(before: Event, now: Event, failure: str) -> str:
    resized = f"from {before.workers} to {now.workers} workers" if before.workers != now.workers else ""
    if failure:
        return f"restarted {resized} after: {failure}".replace("  ", " ")
    return f"resized {resized}" if resized else "restarted"


def _how_ended(following: Event | None, start: Event) -> str:
    if following is None:
        return "running"
    if following.kind == "end":
        return following.state or "ended"
    if following.kind == "start":
        return "stopped" if following.workers == start.workers else "resized"
    return "killed" if following.kind == "launch" else "lost a worker"
