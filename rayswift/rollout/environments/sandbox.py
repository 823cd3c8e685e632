"""Python programs that a model writes, as a tool: each in a process of its own, without network, within limits.

The kernel enforces the limits (Linux 5.13 or newer): Landlock allows some files, seccomp(2) allows system calls that
reach nothing outside the process, and resource limits bound time, memory and size. The process first drops the
capabilities of root. A program may

- read Python's library, `/usr` and `/lib`, so no file of the user's, and nothing of another process;
- write files of 10 MB each and 50 MB in all into a folder that goes with it, which has no folders in it;
- start threads, but no process and no other program;
- use 10 s, and 512 MB of memory.

It shares kernel and CPUs with the run. To be safe from faults of the kernel, write a tool that uses a virtual machine.
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
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

_SECONDS, _MEMORY_BYTES, _FILE_BYTES, _FOLDER_BYTES = 10, 512 << 20, 10 << 20, 50 << 20
_MOST_FILES = 60  # in the folder, and open at a time
_MOST_OUTPUT_BYTES = 64 << 10
_POLL_S = 0.05

# By machine: the audit number of its system calls; clone, clone3, prlimit64, fcntl; and those that are refused. These
# are, in this order: socket, socketpair, kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal,
# ptrace, process_vm_readv, process_vm_writev, io_uring_setup, unshare, setns, setsid, setpriority, ioprio_set,
# sched_setscheduler, sched_setparam, sched_setattr, sched_setaffinity, migrate_pages, move_pages, shmget, semget,
# msgget, mq_open, memfd_create, memfd_secret, add_key, request_key, keyctl, truncate, fchmod, fchmodat, fchmodat2,
# fchown, fchownat, setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr, utimensat; and on x86 fork,
# vfork, chmod, chown, lchown, utime, utimes, futimesat, which others have not.
_X86_REFUSED = """
41 53 62 200 234 129 297 424 101 310 311 425 272 308 112 141 251 144 142 314 203 256 279 29 64 68 240 319 447 248 249
250 76 91 268 452 93 260 188 189 190 197 198 199 280 57 58 90 92 94 132 235 261
"""
_ARM_REFUSED = """
198 199 129 130 131 138 240 424 117 270 271 425 97 268 157 140 30 119 118 274 122 238 239 194 190 186 180 279 447 217
218 219 45 52 53 452 55 54 5 6 7 14 15 16 88
"""
_CALLS = {
    "x86_64": (0xC000003E, (56, 435, 302, 72), tuple(map(int, _X86_REFUSED.split()))),
    "aarch64": (0xC00000B7, (220, 435, 261, 25), tuple(map(int, _ARM_REFUSED.split()))),
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_X32, _CLONE_THREAD, _SET_OWNER, _SET_SIGNAL, _SET_OWNER_EX = 0x40000000, 0x00010000, 8, 10, 15

# Landlock: its system calls, which have the same numbers on all machines, and rights by bit.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
_SCOPES = 0b11  # abstract sockets, signals
_CAPABILITIES_V3 = 0x20080522


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def problem() -> str:
    """Return why this machine cannot enforce the limits; "": it can."""
    if sys.platform != "linux" or os.uname().machine not in _CALLS:
        return f"the tool python needs Linux on {' or '.join(_CALLS)}"
    if _landlock_version(ctypes.CDLL(None)) < 1:
        return "the tool python needs a kernel with Landlock (Linux 5.13), so that programs can be kept from files"
    return ""


def python(code: str) -> str:
    """Run a Python program.

    Args:
        code: The program; what it prints is the answer.

    Returns:
        What it printed, and how it failed.
    """
    if missing := problem():
        raise RuntimeError(missing)
    folder = tempfile.TemporaryDirectory(prefix="python-tool-", ignore_cleanup_errors=True)
    with folder as name, tempfile.TemporaryFile() as output:
        return _run(code, Path(name), output)


def _run(code: str, folder: Path, output: BinaryIO) -> str:
    (folder / "program.py").write_text(code, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder / "program.py")],
        cwd=folder,
        env={
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        stopped = _watched(process, folder)
    finally:
        _end(process)
    output.seek(0)
    text = output.read(_MOST_OUTPUT_BYTES).decode("utf-8", "replace").strip()
    if output.seek(0, os.SEEK_END) > _MOST_OUTPUT_BYTES:
        text += "\n[the output is longer]"
    if stopped or process.returncode == -signal.SIGXCPU:
        return f"{text}\n[stopped: {stopped or _TOO_LONG}]".strip()
    if process.returncode:
        return f"{text}\n[ended with {_named(process.returncode)}]".strip()
    return text


_TOO_LONG = f"it took more than {_SECONDS} s"


def _watched(process: "subprocess.Popen[bytes]", folder: Path) -> str:
    """Wait for its end; return why the wait ended before."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
            return ""
        sizes = list(_sizes(folder))
        if len(sizes) > _MOST_FILES:
            return f"it wrote more than {_MOST_FILES} files"
        if sum(sizes) > _FOLDER_BYTES:
            return f"it wrote more than {_FOLDER_BYTES >> 20} MB"
    return _TOO_LONG


def _sizes(folder: Path) -> Iterator[int]:
    with os.scandir(folder) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False).st_size


def _named(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _confine(folder: str) -> None:
    """Set limits and refusals for this process and all its threads."""
    limits = {
        resource.RLIMIT_CPU: _SECONDS,
        resource.RLIMIT_AS: _MEMORY_BYTES,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))
    libc = ctypes.CDLL(None, use_errno=True)
    _must(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _keep_from_files(libc, folder)
    none = struct.pack("Ii", _CAPABILITIES_V3, 0), bytes(24)
    _must(libc.capset(*none), "capset")
    _keep_from_calls(libc)


def _must(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: this machine cannot hold a program to its limits")
    return result


def _landlock_version(libc: ctypes.CDLL) -> int:
    return int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _keep_from_files(libc: ctypes.CDLL, folder: str) -> None:
    """Allow Landlock's rights to files only for the paths named here, and the right to execute for none."""
    version = _landlock_version(libc)
    known = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    rules = struct.pack("QQQ", known, 0, _SCOPES if version >= 6 else 0)
    ruleset = _must(libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    system = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/urandom")
    paths = dict.fromkeys((*system, os.path.join(sys.base_prefix, "lib"), *sys.path), _READ_FILE | _READ_DIR)
    paths["/dev/null"] = _READ_FILE | _WRITE_FILE
    paths[folder] = _READ_FILE | _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
    for path, rights in paths.items():
        if not os.path.exists(path):
            continue
        rights &= known if os.path.isdir(path) else known & (_READ_FILE | _WRITE_FILE)
        at = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", rights, at)
        _must(libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(at)
    _must(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _keep_from_calls(libc: ctypes.CDLL) -> None:
    steps = _filter()
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(steps), ctypes.cast(buffer, ctypes.c_void_p))
    _must(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0), "seccomp")


def _filter() -> Sequence[tuple[int, int, int, int]]:
    """Return the filter as BPF: code, steps to skip if it holds, if it does not, operand.

    seccomp_data has the number of the call at 0, the architecture at 4, the low halves of the first two arguments at 16
    and 24.
    """
    architecture, (clone, clone3, prlimit, fcntl), refused = _CALLS[os.uname().machine]
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # Limits of others, and signals to others from a file.
    steps += [(_EQUAL, 0, 4, prlimit), (_LOAD, 0, 0, 16), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _REFUSE)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_EQUAL, 0, 6, fcntl), (_LOAD, 0, 0, 24)]
    steps += [(_EQUAL, 2, 0, _SET_OWNER), (_EQUAL, 1, 0, _SET_SIGNAL), (_EQUAL, 0, 1, _SET_OWNER_EX)]
    steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    # If clone3 is missing, threads are made by clone; all other uses of clone make processes.
    steps += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _MISSING), (_EQUAL, 0, 4, clone), (_LOAD, 0, 0, 16)]
    steps += [(_HAS_BITS, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _main() -> None:
    """Run in the child process: set the limits, then run the program."""
    path = sys.argv[1]
    source = Path(path).read_text(encoding="utf-8")
    _confine(os.path.dirname(path))
    sys.argv = [path]
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _main()
