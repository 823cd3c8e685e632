"""Python programs that a model writes, as a tool: each in a process of its own, without network, within limits.

The process may use 10 s of CPU and of time and 512 MB of memory, and write files of 10 MB in a folder that goes with
it. Linux' seccomp(2) refuses it sockets, further processes, and to signal or trace others. It reads what the user of
the run can read, and can delete it: on machines with anything to lose, run it in a container.
"""

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

_SECONDS, _MEMORY_BYTES, _FILE_BYTES = 10, 512 << 20, 10 << 20
_MOST_OUTPUT_BYTES = 64 << 10

# By machine: the audit number of its system calls; clone, clone3; and those that are refused: socket, socketpair, kill,
# tkill, tgkill, ptrace, process_vm_writev, pidfd_send_signal, io_uring_setup, unshare, setns, setsid, fork, vfork.
_CALLS = {
    "x86_64": (0xC000003E, 56, 435, (41, 53, 62, 200, 234, 101, 311, 424, 425, 272, 308, 112, 57, 58)),
    "aarch64": (0xC00000B7, 220, 435, (198, 199, 129, 130, 131, 117, 271, 424, 425, 97, 268, 157)),
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_X32, _CLONE_THREAD = 0x40000000, 0x00010000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def python(code: str) -> str:
    """Run a Python program.

    Args:
        code: The program; what it prints is the answer.

    Returns:
        What it printed, and how it failed.
    """
    if os.uname().machine not in _CALLS:
        raise RuntimeError(f"programs cannot be cut off from the network on a machine of kind {os.uname().machine}")
    with tempfile.TemporaryDirectory(prefix="python-tool-", ignore_cleanup_errors=True) as folder:
        return _run(code, Path(folder))


def _run(code: str, folder: Path) -> str:
    (folder / "program.py").write_text(code, encoding="utf-8")
    output = folder / ".output"
    starter = [sys.executable, "-I", "-S", __file__, str(folder / "program.py")]
    with open(output, "wb") as file:
        process = subprocess.Popen(
            starter,
            cwd=folder,
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code_of_end: int | None = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            code_of_end = None
        finally:
            _end(process)
    with open(output, "rb") as file:
        text = file.read(_MOST_OUTPUT_BYTES).decode("utf-8", "replace").strip()
    if output.stat().st_size > _MOST_OUTPUT_BYTES:
        text += "\n[the output is longer]"
    if code_of_end is None or code_of_end == -signal.SIGXCPU:
        return f"{text}\n[stopped after {_SECONDS} s]".strip()
    if code_of_end:
        return f"{text}\n[ended with {_named(code_of_end)}]".strip()
    return text


def _named(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it, and what it may have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _confine() -> None:
    """Limits and refusals for this process and all that it starts."""
    limits = {
        resource.RLIMIT_CPU: _SECONDS,
        resource.RLIMIT_AS: _MEMORY_BYTES,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))
    # seccomp_data: the number of the call at 0, the architecture at 4, the first argument at 16.
    architecture, clone, clone3, refused = _CALLS[os.uname().machine]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # Threads are made by clone where clone3 seems to be missing; whatever else it makes is a process.
    steps += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _MISSING), (_EQUAL, 0, 4, clone), (_LOAD, 0, 0, 16)]
    steps += [(_HAS_BITS, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "this machine cannot cut a program off from the network (seccomp)")


def _main() -> None:
    """The process's half: confine itself, then run the program."""
    path = sys.argv[1]
    _confine()
    source = Path(path).read_text(encoding="utf-8")
    sys.argv = [path]
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _main()
