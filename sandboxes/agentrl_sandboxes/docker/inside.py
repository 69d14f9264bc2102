"""What runs as process 1 of a container: the runner of `process.inside`, over standard input and output.

It is sent, as source, over standard input (`sent`), so that any image with a Python 3.9 serves and none grows old.
"""

from __future__ import annotations

import _signal  # type: ignore[reportMissingImports]
import ctypes
import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

from agentrl_sandboxes.process.inside import files, processes
from agentrl_sandboxes.process.inside.runner import Runner, Stream

CGROUP = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")

SET_SECCOMP, BY_PROGRAM = 22, 2


class ContainerRunner(Runner):
    """Hears on standard input and answers on standard output; both are its own alone, for what it starts gets other streams."""

    def __init__(self) -> None:
        super().__init__(0)
        self.ended_by_memory = memory_ends()

    def do_open(self, setup: dict[str, Any], _: bytes) -> None:
        if program := setup["filters"].get(os.uname().machine):
            filter_calls(program)
        super().do_open(setup, _)

    def tell(self, what: str, *figures: object, body: bytes = b"") -> None:
        head = " ".join(map(str, (self._number, what, *figures))).encode()
        frame = memoryview(len(head).to_bytes(4, "little") + len(body).to_bytes(4, "little") + head + body)
        while frame:
            frame = frame[os.write(1, frame) :]

    def answer(self, status: int, used: float, why: str, began: float, out: Stream, err: Stream) -> None:
        before, self.ended_by_memory = self.ended_by_memory, memory_ends()
        if not why and status and self.ended_by_memory > before:
            why = "memory"
        super().answer(status, used, why, began, out, err)


class GuardedRunner(ContainerRunner):
    """For gVisor, which lets a user look into and kill process 1 if it is the user's.

    So process 1 is root's, with no more than the right to start, as the sandbox's user, what it runs. It looks, itself, at how
    many processes there are and at how much memory they have; RLIMIT_NPROC stands before that, for a storm of forks is faster
    than any look, and gVisor falls of it.
    """

    crowded = False
    uncounted = 2
    """The session's Python and the command: what root forked is root's to RLIMIT_NPROC, whoever it becomes."""

    def do_open(self, setup: dict[str, Any], _: bytes) -> None:
        bounds = processes.limit

        def limit(limits: Mapping[str, int]) -> None:
            bounds({**limits, "NPROC": max(setup["processes"] - self.uncounted, 0)})
            os.setgroups([])
            os.setgid(setup["group"])
            os.setuid(setup["user"])

        processes.limit = limit  # the last that a child does to itself
        super().do_open(setup, _)

    def do_read(self, path: str, _: bytes) -> None:
        self.tell("data", body=self.aside(files.read, path, self.setup["largest"]))

    def do_write(self, path: str, body: bytes) -> None:
        self.tell("data", body=self.aside(files.write, path, body))

    def do_list(self, path: str, _: bytes) -> None:
        self.tell("data", body=self.aside(files.listing, path))

    def aside(self, work: Callable[..., bytes | None], *given: object) -> bytes:
        """Files are the user's business, too: a child, the user's, does it."""
        back, end = os.pipe()
        pid = self.children.fork()
        if not pid:
            try:
                os.closerange(0, 2)  # before it is the user's, whose others may look into it
                processes.limit({})
                said = memoryview(outcome(work, *given))
                while said:
                    said = said[os.write(end, said) :]
            finally:
                os._exit(0)
        os.close(end)
        found = b"".join(iter(lambda: os.read(back, 1 << 20), b""))
        os.close(back)
        self.children.end(pid)
        if failed := int.from_bytes(found[:4], "little") if len(found) >= 4 else errno.EIO:
            raise OSError(failed, found[4:].decode("utf-8", "surrogateescape"))
        return found[4:]

    def answer(self, status: int, used: float, why: str, began: float, out: Stream, err: Stream) -> None:
        super().answer(status, used, "" if why == "memory" and self.crowded else why, began, out, err)

    def too_much(self) -> bool:
        """gVisor's figures are the container's own."""
        with open("/proc/meminfo") as file:
            total, free = (int(file.readline().split()[1]) for _ in range(2))
        living = sum(name.isdigit() for name in os.listdir("/proc")) - 1
        self.crowded = living > self.setup["processes"]
        return self.crowded or (total - free) << 10 > self.setup["memory"]


class Program(ctypes.Structure):
    """struct sock_fprog: how many instructions of eight bytes, and where."""

    _fields_ = (("count", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def filter_calls(program: bytes) -> None:
    """Adds a filter to the engine's own, for this process and all that it starts."""
    lines = ctypes.create_string_buffer(program, len(program))
    call = ctypes.CDLL(None, use_errno=True).prctl
    if call(SET_SECCOMP, BY_PROGRAM, ctypes.byref(Program(len(program) // 8, ctypes.addressof(lines))), 0, 0):
        raise OSError(ctypes.get_errno(), "the filter of system calls is refused")


def outcome(work: Callable[..., bytes | None], *given: object) -> bytes:
    """Four bytes of error number, 0 for none, and the error's text or what came of it."""
    try:
        return bytes(4) + (work(*given) or b"")
    except OSError as error:
        return (error.errno or errno.EIO).to_bytes(4, "little") + os.fsencode(error.strerror or str(error))
    except ValueError as error:  # a NUL in a path
        return errno.EINVAL.to_bytes(4, "little") + str(error).encode()


def memory_ends() -> int:
    """How often the container's cgroup has ended a process for its memory."""
    for path in CGROUP:
        try:
            with open(path) as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except OSError:
            continue
    return 0


class Deaths:
    """`os.pidfd_open` where the kernel has none (gVisor): a pipe that is closed once the child has ended."""

    def __init__(self) -> None:
        self._own = os.getpid()
        self._ends: dict[int, int] = {}
        _signal.signal(_signal.SIGCHLD, self._heard)

    def open(self, pid: int) -> int:
        fd, self._ends[pid] = os.pipe()
        self._heard()
        return fd

    def _heard(self, *_: object) -> None:
        if os.getpid() != self._own:  # a fork: not its children
            return
        for pid in tuple(self._ends):
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            except ChildProcessError:
                ended = True
            end = self._ends.pop(pid, None) if ended else None  # a signal in between may have closed it
            if end is not None:
                os.close(end)


def main() -> None:
    """Process 1, from its first line to its last."""
    try:
        os.close(os.pidfd_open(1))
    except OSError:
        os.pidfd_open = Deaths().open
    runner = ContainerRunner() if os.getuid() else GuardedRunner()
    runner.serve()  # should it fall, its last words are heard, and all else in the container ends with it
