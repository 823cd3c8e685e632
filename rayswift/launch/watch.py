"""The driver watches a run: it reports ranks that wait, and ends a run that cannot continue."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rayswift.cluster import nodes, preflight
from rayswift.log import UserError, logger
from rayswift.report.console import say
from rayswift.run import events
from rayswift.run.waiting import NO_SIGN_S, Lines, Waiting, clear, read, size_of, warnings

_LOOK_S = 1.0
_CLOSE_S = 5.0
_HEAD_EVERY_S = 2.0
_TELL_HEAD_S = 10.0
# Ray kills a driver whose head is silent for 60 s (RAY_gcs_rpc_server_reconnect_timeout_s).
_HEAD_S = 50.0


class Watch:
    """A thread that shows warnings and reports lack of progress while its block runs; `check` ends a stuck run.

    size: smallest number of ranks; supply: `DataService.standing`; cluster: None for a local Ray; timeout_s: longest
    wait for a sign of any rank.
    """

    def __init__(
        self,
        run_dir: Path,
        size: int,
        supply: Callable[[], tuple[object, str]],
        cluster: "Cluster | None",
        timeout_s: float,
    ):
        self._run_dir, self._log_dir = run_dir, run_dir / "logs"
        self._supply, self._cluster, self._timeout_s = supply, cluster, timeout_s
        clear(self._log_dir)
        self._waiting = Waiting(size, time.monotonic())
        self._rollouts = Lines(self._log_dir / "rollouts.log")
        self._said = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._done.set()
        self._thread.join(timeout=_CLOSE_S)

    def check(self) -> None:
        """Raise UserError if the run cannot continue; called every second."""
        if self._cluster is not None:
            self._cluster.check_head()
            if self._waiting.without_ranks_s > NO_SIGN_S and self._cluster.wait_for_room():
                self._waiting.begin_anew(time.monotonic())
        if self._waiting.without_ranks_s > self._timeout_s:
            raise UserError(
                f"no worker gave a sign within cluster.timeout_s = {self._timeout_s:g} s: "
                f"{self._said or 'none started'}; see {self._log_dir}; continue with --resume auto",
                exit_code=1,
            )

    def _run(self) -> None:
        while not self._done.wait(_LOOK_S):
            try:
                self._look()
            except Exception as error:  # a failing cluster raises many errors; keep watching
                logger.debug("the watch failed: %s", error)
        self._show_news()

    def _look(self) -> None:
        self._show_news()
        try:
            moved, supply = self._supply()
        except Exception as error:  # a failing service must not end the watch
            moved, supply = None, f"the data service does not answer ({type(error).__name__})"
        shown = [size_of(self._log_dir / "rank-0.log"), size_of(self._run_dir / events.EVENTS)]
        self._waiting.look(time.monotonic(), read(self._log_dir), moved, shown)
        if self._waiting.due():
            lost = self._cluster.lost_nodes() if self._cluster is not None else []
            self._said = self._waiting.describe(supply, lost)
            say(self._said)

    def _show_news(self) -> None:
        for text in warnings(self._rollouts.new()):
            say(text)


class Cluster:
    """The joined cluster. head: address and port; ask: what the smallest worker group needs; patience_s: for nodes."""

    def __init__(self, head: tuple[str, int], ask: preflight.Ask, patience_s: float):
        self._head, self._ask, self._patience_s = head, ask, patience_s
        self._answered_s = self._logged_s = time.monotonic()
        self._looked_s = 0.0

    def check_head(self) -> None:
        """Report a silent head; raise UserError shortly before Ray would kill this process without a message."""
        now = time.monotonic()
        if now - self._looked_s < _HEAD_EVERY_S:
            return
        self._looked_s = now
        if nodes.answers(*self._head, timeout_s=_HEAD_EVERY_S):
            self._answered_s = self._logged_s = time.monotonic()
            return
        now = time.monotonic()
        where = f"the head of the Ray cluster, {self._head[0]}:{self._head[1]},"
        if now - self._answered_s > _HEAD_S:
            raise UserError(
                f"{where} has not answered for {now - self._answered_s:.0f} s; bring it back and continue with "
                "--resume auto",
                exit_code=1,
            )
        if now - self._logged_s > _TELL_HEAD_S:
            self._logged_s = now
            say(f"{where} has not answered for {now - self._answered_s:.0f} s")

    @property
    def has_head(self) -> bool:
        """Whether the head answered just now."""
        return time.monotonic() - self._answered_s < 3 * _HEAD_EVERY_S

    def wait_for_room(self) -> bool:
        """If the remaining nodes have no room for the group, wait for new ones; return whether it waited."""
        if not self.has_head or preflight.could_fit(self._ask):
            return False
        say("nodes of the Ray cluster were lost: what is left cannot hold the workers")
        try:
            preflight.wait_until_it_fits(self._ask, self._patience_s)
        except UserError as error:
            raise UserError(f"{error}; continue with --resume auto", exit_code=1) from error
        return True

    def lost_nodes(self) -> list[str]:
        """Addresses of nodes that Ray lists and that accept no connection from here."""
        import ray

        if not self.has_head:  # Ray would ask the head
            return [f"{self._head[0]} (the head)"]
        return [node["NodeManagerAddress"] for node in nodes.silent([each for each in ray.nodes() if each["Alive"]])]
