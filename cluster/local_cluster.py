"""A Ray cluster of one head and n nodes, each a process of this machine: to try things out, and for tests.

    python cluster/local_cluster.py --nodes 2 --cpus 2
    ray job submit --address http://127.0.0.1:8265 --working-dir . -- rayswift sft --config run.yaml

It runs until interrupted, and ends only the processes that it started. It asks for no token, so it listens on
this machine only. With `--hosts 3` in place of `--nodes` each node is a host with an address, a name, processes and a
`/tmp` of its own, see `local_hosts.py`.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psutil

_START_S = 120
_STOP_S = 3
_HOST = "127.0.0.1"
# A variable in the environment of every process of a cluster; its value is the cluster's folder.
_MARK = "RAYSWIFT_LOCAL_CLUSTER"
# Ray's workers have lower ports; the system gives higher ones to any process, also while a node starts.
_PORTS = range(20_000, 32_000)


class LocalCluster:
    """Starts the head when entered; `add_node` adds nodes; leaving it ends all of them.

    Args:
        num_cpus: CPUs of the head.
        dashboard: Whether the head takes jobs (`ray job submit`).
        environment: Variables for all nodes, beside this process's own.
        head_flags: More flags for `ray start --head`.
    """

    def __init__(
        self,
        num_cpus: int = 1,
        dashboard: bool = True,
        environment: dict[str, str] | None = None,
        head_flags: tuple[str, ...] = (),
    ):
        # Unix sockets are created in it; their paths may have 107 bytes at most.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.address = f"{_HOST}:{free_port()}"
        self.dashboard_url = f"http://{_HOST}:{free_port()}"
        self.environment = {
            **os.environ,
            _MARK: str(self._folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_timeout_ms": "3000",  # a disconnected node is declared dead after 30 s instead of 65 s
            # A job finds `rayswift` where this Python finds it.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **(environment or {}),
        }
        self._num_cpus, self._dashboard, self._head_flags = num_cpus, dashboard, head_flags
        self._nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "LocalCluster":
        host, port = self.address.split(":")
        dashboard_port = self.dashboard_url.rpartition(":")[2]
        flags = ["--head", f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={self._num_cpus}"]
        agent_port = free_port()
        flags += [f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={agent_port}"]
        flags += [f"--include-dashboard={str(self._dashboard).lower()}", f"--dashboard-port={dashboard_port}"]
        try:
            self._start([*flags, "--dashboard-host=127.0.0.1", *self._head_flags])
            self._wait_for_last_node()
            if self._dashboard:
                _wait_for_port(self.dashboard_url.removeprefix("http://"))
                _wait_for_port(f"{host}:{agent_port}")  # it starts the jobs, and is ready last
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def add_node(self, num_cpus: int = 1, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start one more node and wait until the head knows it.

        Args:
            num_cpus: Its CPUs.
            prefix: A command to start it through, such as `unshare --mount`.
        """
        flags = [f"--address={self.address}", f"--num-cpus={num_cpus}", f"--node-ip-address={_HOST}"]
        process = self._start([*flags, f"--dashboard-agent-listen-port={free_port()}"], prefix)
        self._wait_for_last_node()
        return process

    def _start(self, flags: list[str], prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        # Each node has its own folder, as on separate machines: in a common one, a node that unpacks a job's working
        # folder removes it while processes of another node use it.
        flags = [f"--temp-dir={self._folder / str(len(self._nodes))}", *flags]
        command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags]
        with open(self._folder / f"node-{len(self._nodes)}.log", "wb") as log:
            process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._nodes.append(process)
        return process

    def _wait_for_last_node(self) -> None:
        number, node = len(self._nodes) - 1, self._nodes[-1]
        log, deadline = self._folder / f"node-{number}.log", time.monotonic() + _START_S
        while "Ray runtime started" not in (text := log.read_text(encoding="utf-8", errors="replace")):
            if node.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"node {number} did not come up within {_START_S} s:\n{text[-3000:]}")
            time.sleep(0.1)

    def count_processes(self, title: str) -> int:
        """The number of processes of this cluster whose title (`ray::...`) begins with `prefix`."""
        # The environment of a process that sets a title can no longer be read.
        owned = {process for process in psutil.process_iter() if self._owns(process)}
        found = owned | {child for process in owned for child in _children(process)}
        return sum(_name(process).startswith(title[:15]) for process in found)  # the system keeps 15 characters

    def stop(self) -> None:
        """End every process that belongs to this cluster, and remove its folder."""
        # Raylets and the drivers of jobs continue after the `ray start` that started them ends.
        doomed = [process for process in psutil.process_iter() if self._owns(process)]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(doomed, timeout=_STOP_S)
        for process in {*alive, *(each for each in psutil.process_iter() if self._owns(each))}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in self._nodes:
            node.wait()
        self._nodes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(_MARK) == str(self._folder)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    """A port on which no process listens now, and which the system gives to no process that asks for any."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):  # tests seed `random`
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((_HOST, port))
            return port
    raise RuntimeError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free")


def _wait_for_port(address: str) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def main() -> None:
    """Start a cluster and hold it until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1, help="nodes beside the head")
    parser.add_argument("--hosts", type=int, default=0, help="hosts, the head's with them, in place of nodes")
    parser.add_argument("--cpus", type=int, default=2, help="CPUs of each")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # also when its terminal is closed
        signal.signal(number, lambda *_: sys.exit(0))
    if args.hosts:
        from local_hosts import hold  # in the folder of this script

        return hold(args.hosts, args.cpus)
    with LocalCluster(args.cpus) as cluster:
        for _ in range(args.nodes):
            cluster.add_node(args.cpus)
        print(f"export RAY_ADDRESS={cluster.address} RAY_AUTH_MODE=disabled")
        print(f"ray job submit --address {cluster.dashboard_url} --working-dir . -- rayswift sft --config run.yaml")
        print("interrupt to end it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
