"""Hosts of a cluster on one machine: each has its own network address, host name, processes, `/tmp` and `/dev/shm`.

The nodes of `LocalCluster` share all of these, so many faults between machines cannot occur there.
A host is a set of Linux namespaces that a switch connects with the others. Its own name resolves to 127.0.1.1, as
Debian sets it up. The hosts reach only each other, so their addresses do not conflict with those of this machine. They
share the file system outside `/tmp`, and one folder. A host can be powered off, disconnected, slowed down and put
behind a firewall.

Needs root and the commands `ip`, `unshare` and `nsenter`; see `obstacle`.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

_NETWORK = "10.77.0"
SWITCH = f"{_NETWORK}.254"
"""The address at which every host reaches services at the switch."""
_GCS_PORT, _DASHBOARD_PORT, _AGENT_PORT = 6379, 8265, 52365
_AGENTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
_START_S = 240
_NEEDED = ("ip", "iptables", "mount", "nsenter", "ss", "tc", "unshare")
_ROOT = Path(__file__).resolve().parents[1]

# The first process of the namespaces reports that they are set up, and keeps them until its input ends, which also
# happens when its parent is killed. Orphans become its children; it ignores their end, so that the kernel reaps them.
_HOLD = """
trap '' CHLD
echo up
exec cat
"""
_SET_UP_SWITCH = (
    """
set -e
ip link set lo up
ip link add switch type bridge
ip address add "$SWITCH/24" dev switch
ip link set switch up
"""
    + _HOLD
)
_SET_UP_HOST = (
    """
set -e
echo "$NAME" > /proc/sys/kernel/hostname
printf '127.0.0.1\\tlocalhost\\n127.0.1.1\\t%s\\n' "$NAME" > "$OWN/hosts"
: > "$OWN/resolv.conf"
mount --bind "$OWN/hosts" /etc/hosts
mount --bind "$OWN/resolv.conf" /etc/resolv.conf
mkdir -p "$OWN/tmp"
chmod 1777 "$OWN/tmp"
for seen in "$@"; do
    case "$seen" in /tmp/*)
        mkdir -p "$OWN/tmp/${seen#/tmp/}"
        mount --bind "$seen" "$OWN/tmp/${seen#/tmp/}"
    esac
done
mount --rbind "$OWN/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
"""
    + _HOLD
)


def obstacle() -> str | None:
    """The reason why this machine cannot have such hosts; None: it can."""
    if sys.platform != "linux":
        return "hosts are made of Linux namespaces"
    missing = [command for command in _NEEDED if shutil.which(command) is None]
    if missing:
        return f"the commands {', '.join(missing)} are missing (Debian: apt install iproute2 iptables util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--mount-proc",
         "sh", "-c", "mount -t tmpfs tmpfs /dev/shm && ip link add probe type bridge"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    return f"namespaces cannot be made here: {tried.stderr.strip()}" if tried.returncode else None


class _Namespaces:
    """A set of Linux namespaces and the process that holds them; it ends with whoever made it."""

    def __init__(self, kinds: Sequence[str], script: str, arguments: Sequence[str], environment: Mapping[str, str]):
        self._kinds = [f"--{kind}" for kind in kinds]
        self._holder = subprocess.Popen(
            ["unshare", *self._kinds, "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh", *arguments],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "up\n":
            raise RuntimeError(f"namespaces cannot be set up: {self._holder.stderr.read().strip()}")
        (self.pid,) = (child.pid for child in psutil.Process(self._holder.pid).children())

    def command(self, argv: Sequence[str], folder: Path | str = "/") -> list[str]:
        """The command line that runs `argv` in the namespaces."""
        there = ["nsenter", f"--target={self.pid}", *self._kinds, "--pid", "--mount"]
        return [*there, "sh", "-c", 'cd "$0" && exec "$@"', str(folder), *argv]

    def run(self, *argv: str) -> str:
        """Run a command in the namespaces to its end; returns its output.

        Raises:
            RuntimeError: it failed.
        """
        done = subprocess.run(self.command(argv), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"`{' '.join(argv)}` failed: {done.stdout}{done.stderr}")
        return done.stdout

    def end(self) -> None:
        """End the first process of the namespaces; the kernel then ends all others."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._holder.wait(timeout=60)
        for pipe in (self._holder.stdin, self._holder.stdout, self._holder.stderr):
            if pipe is not None:
                pipe.close()


class Host:
    """A running host; made by `LocalHosts`.

    Args:
        number: From 0.
        folder: Of its own files.
        switch: The switch that it is connected to.
        seen: Folders below `/tmp` that it sees as this machine does.
        environment: Of all processes on it.
    """

    def __init__(
        self, number: int, folder: Path, switch: _Namespaces, seen: Sequence[Path], environment: Mapping[str, str]
    ):
        self.name, self.address = f"host-{number}", f"{_NETWORK}.{number + 1}"
        self.log = folder / f"{self.name}.log"
        self._environment, self._switch, self._plug = dict(environment), switch, f"veth{number}"
        self._ray: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []
        self._ray_command: list[str] = []
        self._ray_environment: dict[str, str] = {}
        self._own = folder / self.name
        self._own.mkdir(exist_ok=True)
        kinds = ("uts", "ipc", "net")
        self._inside = _Namespaces(
            kinds, _SET_UP_HOST, [str(path) for path in seen], {**environment, "NAME": self.name, "OWN": str(self._own)}
        )
        with contextlib.suppress(RuntimeError):
            switch.run("ip", "link", "del", self._plug)  # of an earlier host with this number
        plug_in = [
            "ip",
            "link",
            "add",
            self._plug,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self._inside.pid),
        ]
        # Process numbers are those of this machine.
        subprocess.run(["nsenter", f"--target={switch.pid}", "--net", *plug_in], check=True, timeout=60)
        switch.run("ip", "link", "set", self._plug, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", SWITCH)

    def command(self, argv: Sequence[str], folder: Path | str = "/") -> list[str]:
        """The command line that runs `argv` on this host."""
        return self._inside.command(argv, folder)

    def run(self, *argv: str) -> str:
        """Run a command on this host to its end; returns its output.

        Raises:
            RuntimeError: it failed.
        """
        return self._inside.run(*argv)

    def start(
        self, argv: Sequence[str], folder: Path | str = "/", environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on this host; its output, both streams in one, is the process's `stdout`."""
        return subprocess.Popen(
            self.command(argv, folder),
            env={**self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End all processes on it."""
        self._inside.end()

    # ---- Ray ----

    def start_ray(
        self,
        num_cpus: int,
        resources: Mapping[str, float] | None = None,
        head: str | None = None,
        dashboard: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start a node of a Ray cluster; `wait_for_ray` waits until it has started.

        Args:
            num_cpus: Its CPUs.
            resources: Its custom resources.
            head: Address of the head; None: this is the head.
            dashboard: Whether a head takes jobs.
            environment: More variables for it.
        """
        # A raylet gives its agent 15 s to choose ports, too few on a busy machine; on a host of its own these are free.
        flags = [f"--num-cpus={num_cpus}", *(f"--{what}-port={_AGENT_PORT + i}" for i, what in enumerate(_AGENTS))]
        if resources:
            flags.append(f"--resources={json.dumps(dict(resources))}")
        if head:
            flags.append(f"--address={head}:{_GCS_PORT}")
        else:
            flags += ["--head", f"--port={_GCS_PORT}", f"--include-dashboard={str(dashboard).lower()}"]
            flags += ["--dashboard-host=0.0.0.0", f"--dashboard-port={_DASHBOARD_PORT}"]
        self._ports = [] if head or not dashboard else [_DASHBOARD_PORT, _AGENT_PORT]
        self._ray_command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags]
        self._ray_environment = {**self._environment, **(environment or {})}
        self._ray = self._start_node()

    def _start_node(self) -> subprocess.Popen[bytes]:
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                self.command(self._ray_command),
                env=self._ray_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_ray(self) -> None:
        """Return once the node has started, and a head takes jobs.

        Raises:
            RuntimeError: it did not come up.
        """
        assert self._ray is not None, "started"
        deadline = time.monotonic() + _START_S
        while "Ray runtime started" not in (text := self.log.read_text(encoding="utf-8", errors="replace")):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Ray did not come up on {self.name} within {_START_S} s:\n{text[-1000:]}\n{self._raylets_errors()}"
                )
            if self._ray.poll() is not None:  # Ray itself waits 30 s, too short on a busy machine
                self._ray = self._start_node()
            time.sleep(0.1)
        for port in self._ports:
            self.wait_for_port(port)

    def _raylets_errors(self) -> str:
        logs = sorted(self._own.glob("tmp/ray/session_2*/logs/raylet.err"))
        return "\n".join(log.read_text(encoding="utf-8", errors="replace")[:1000] for log in logs)

    def wait_for_port(self, port: int) -> None:
        """Return once a process listens on the port.

        Raises:
            RuntimeError: nothing does.
        """
        deadline = time.monotonic() + _START_S
        while str(port) not in self.run("ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{port}"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on port {port} of {self.name}")
            time.sleep(0.2)

    # ---- trouble ----

    def processes(self) -> list[psutil.Process]:
        """All processes on it, except its first one."""
        mine = _process_namespace(self._inside.pid)
        return [
            each
            for each in psutil.process_iter()
            if each.pid != self._inside.pid and _process_namespace(each.pid) == mine
        ]

    def lose_power(self) -> None:
        """End it; its connections send nothing more, as after a power cut."""
        self.cut()
        self._inside.end()

    def crash(self) -> None:
        """End all its processes at once; its connections are closed, as when the processes are killed."""
        self._inside.end()

    def cut(self) -> None:
        """Disconnect it from the switch; its processes continue."""
        self._switch.run("ip", "link", "set", self._plug, "down")

    def fence(self) -> None:
        """Have its firewall drop new connections from other hosts; it can still connect to them."""
        self.run("iptables", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "--syn", "-j", "DROP")

    def degrade(self, rate: str, delay: str, loss_percent: float) -> str:
        """Make its link slow and lossy in both directions; returns the method.

        `netem` delays and drops. A kernel without it gets a narrow queue (`tbf`), in which packets wait for as long
        at most, and a firewall that drops at random.

        Args:
            rate: Such as `20mbit`.
            delay: Such as `50ms`.
            loss_percent: Of the packets, each way.
        """
        ends = ((self._inside, "eth0"), (self._switch, self._plug))
        try:
            for end, link in ends:
                netem = ("netem", "rate", rate, "delay", delay, "loss", f"{loss_percent}%")
                end.run("tc", "qdisc", "replace", "dev", link, "root", *netem)
            return f"netem: {rate}, {delay}, {loss_percent:g} % lost each way"
        except RuntimeError:
            for end, link in ends:
                tbf = ("tbf", "rate", rate, "burst", "16kb", "latency", delay)
                end.run("tc", "qdisc", "replace", "dev", link, "root", *tbf)
        share = ("-m", "statistic", "--mode", "random", "--probability", f"{loss_percent / 100:g}")
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            self.run("iptables", "-A", chain, way, "eth0", *share, "-j", "DROP")
        return f"tbf: {rate}, queue of {delay}, {loss_percent:g} % lost each way"

    def mend(self) -> None:
        """Undo `cut`, `fence` and `degrade`."""
        for end, link in ((self._inside, "eth0"), (self._switch, self._plug)):
            with contextlib.suppress(RuntimeError):
                end.run("tc", "qdisc", "del", "dev", link, "root")
        self.run("iptables", "-F")
        self._switch.run("ip", "link", "set", self._plug, "up")


class LocalHosts:
    """Starts hosts with a Ray node each, the head first; leaving it ends all processes on them.

    Args:
        num_hosts: The head included.
        num_cpus: CPUs that Ray counts on each host, or one number for all.
        resources: Custom resources of hosts, by number.
        seen: Folders below `/tmp` that all hosts see as this machine does.
        dashboard: Whether the head takes jobs (`ray job submit`).
        environment: Variables of all processes on the hosts, in addition to those of this process.
        head_environment: More variables for the Ray of the head.
        with_ray: Whether Ray nodes are started.
        at_switch: Commands of services that continue when a host ends; hosts reach them at `SWITCH`.
    """

    def __init__(
        self,
        num_hosts: int = 3,
        num_cpus: int | Sequence[int] = 1,
        resources: Mapping[int, Mapping[str, float]] | None = None,
        seen: Sequence[Path] = (),
        dashboard: bool = True,
        environment: Mapping[str, str] | None = None,
        head_environment: Mapping[str, str] | None = None,
        at_switch: Sequence[Sequence[str]] = (),
        with_ray: bool = True,
    ):
        self._folder = Path(tempfile.mkdtemp(prefix="ray-hosts-", dir="/tmp"))
        self._num_cpus = [num_cpus] * num_hosts if isinstance(num_cpus, int) else list(num_cpus)
        self._resources = {number: dict(held) for number, held in (resources or {}).items()}
        # If Python or this package is in a folder below /tmp, hosts see that folder too.
        self._seen = [path for path in (*seen, _ROOT, Path(sys.prefix).resolve()) if path.parts[:2] == ("/", "tmp")]
        inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TMPDIR")}
        self.environment = {
            **inherited,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_timeout_ms": "3000",  # a disconnected node is declared dead after 30 s instead of 65 s
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **(environment or {}),
        }
        self._at_switch, self._with_ray = at_switch, with_ray
        self._dashboard, self._head_environment = dashboard, head_environment
        self._switch: _Namespaces | None = None
        self._hosts: dict[int, Host] = {}
        self.address = f"{_NETWORK}.1:{_GCS_PORT}"
        self.dashboard_url = f"http://{_NETWORK}.1:{_DASHBOARD_PORT}"

    def __enter__(self) -> "LocalHosts":
        try:
            environment = {**self.environment, "SWITCH": SWITCH}
            self._switch = _Namespaces(("net",), _SET_UP_SWITCH, [], environment)
            for service in self._at_switch:
                self._start_at_switch(service)
            for number in range(len(self._num_cpus)):
                self.add(number)
            for number, host in self._hosts.items() if self._with_ray else ():
                # One after the other: each has 15 s to start its agents.
                self.start_ray(number)
                host.wait_for_ray()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def __len__(self) -> int:
        return len(self._hosts)

    def add(self, number: int) -> Host:
        """Add a host with this number, without Ray; it may replace a lost one."""
        assert self._switch is not None, "entered"
        self._hosts[number] = Host(number, self._folder, self._switch, self._seen, self.environment)
        return self._hosts[number]

    def start_ray(self, number: int) -> None:
        """Start the Ray node of a host, without waiting for it; host 0 is the head."""
        resources = self._resources.get(number)
        if number == 0:
            self[0].start_ray(
                self._num_cpus[0], resources, dashboard=self._dashboard, environment=self._head_environment
            )
        else:
            self[number].start_ray(self._num_cpus[number], resources, head=self[0].address)

    def _start_at_switch(self, argv: Sequence[str]) -> None:
        assert self._switch is not None, "entered"
        with open(self._folder / f"{Path(argv[0]).name}.log", "wb") as log:
            subprocess.Popen(
                self._switch.command(argv, self._folder), env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """End all processes on the hosts, and remove the files that they wrote."""
        for host in self._hosts.values():
            host.stop()
        self._hosts.clear()
        if self._switch is not None:
            self._switch.end()
        shutil.rmtree(self._folder, ignore_errors=True)


def hold(num_hosts: int, num_cpus: int) -> None:
    """Start hosts, print how to run commands on them, and keep them until interrupted."""
    if (why := obstacle()) is not None:
        sys.exit(f"no hosts can be had on this machine: {why}")
    with LocalHosts(num_hosts, num_cpus) as hosts:
        for number in range(num_hosts):
            host = hosts[number]
            print(f"{host.name} ({host.address}): {shlex.join(host.command(['bash'], Path.cwd()))}")
        print(f"on any of them: export RAY_ADDRESS={hosts.address} RAY_AUTH_MODE=disabled")
        print(f"ray job submit --address {hosts.dashboard_url} --working-dir . -- rayswift sft --config run.yaml")
        print("interrupt to end them", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _process_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None
