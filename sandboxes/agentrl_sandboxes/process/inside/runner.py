"""Process 1 of a sandbox: serves the host's requests over one socket, which nothing else in the sandbox holds.

A frame is eight bytes (how long its head is, how long its body), a head and a body. The host's heads are marshalled tuples
(number, what, arguments ...); the runner's are text (number, what, figures ...), for the host believes nothing of it.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import sys
import time

from agentrl_sandboxes.process.inside import files, repl
from agentrl_sandboxes.process.inside.processes import (
    Children,
    Ended,
    adopt_orphans,
    become,
    begin,
    close_all_but,
    closed_to_others,
    deaf_to_interrupts,
)

TYPE_CHECKING = False  # `typing` itself takes milliseconds to load, of each sandbox
if TYPE_CHECKING:
    from typing import Any, NoReturn

TICK = 0.05
"""Seconds between two looks at the clock, the orphans and, where no cgroup bounds it, the memory."""
PIPE = 1 << 16
BY_CPU, BY_KILL = (-24, 128 + 24), (-9, 128 + 9)
"""Statuses of a command that SIGXCPU or SIGKILL ended, or whose shell saw that."""
CPU_CLOCK = 2
"""CPUCLOCK_SCHED: a process's own, as clock_getcpuclockid(3) numbers it."""
LATE = 32
"""Pipefuls that are read of a stream after its command ended."""


class Stream:
    """The reading end of a stream: its first bytes are kept, the rest is read and thrown away."""

    def __init__(self, most: int) -> None:
        self.fd, self.end = os.pipe()
        os.set_blocking(self.fd, False)
        self._most = most
        self.renew()

    def renew(self) -> None:
        self.kept = bytearray()
        self.truncated = False
        self.open = True

    def drain(self, pieces: int = 1) -> None:
        while self.open and pieces:
            pieces -= 1
            try:
                piece = os.read(self.fd, PIPE)
            except BlockingIOError:
                return
            self.open = bool(piece)
            room = self._most - len(self.kept)
            self.kept += piece[:room]
            self.truncated |= len(piece) > room

    def close(self, *, reading: bool = True) -> None:
        os.close(self.end)
        if reading:
            os.close(self.fd)


class Feed:
    """What is written to a pipe as fast as it is read."""

    def __init__(self, fd: int, data: bytes, *, closes: bool) -> None:
        os.set_blocking(fd, False)
        self.fd, self._left, self._closes = fd, memoryview(data), closes

    def push(self) -> bool:
        """Whether there is more to write."""
        try:
            self._left = self._left[os.write(self.fd, self._left[:PIPE]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._left = self._left[:0]
        if self._left:
            return True
        self.close()
        return False

    def close(self) -> None:
        if self._closes:
            os.close(self.fd)
            self._closes = False


class Interpreter:
    """The session's Python: its process, its streams and the pipes over which it is asked and answers."""

    def __init__(self, children: Children, control: int, setup: dict[str, Any]) -> None:
        self.out, self.err = Stream(setup["output"]), Stream(setup["output"])
        commands, self.ask = os.pipe()
        self.answer, answers = os.pipe()
        os.set_blocking(self.answer, False)
        nothing = os.open(os.devnull, os.O_RDONLY)
        self.pid = children.fork()
        if not self.pid:
            with repl.Shown():
                begin(control, (nothing, self.out.end, self.err.end), setup["limits"])
                close_all_but(0, 1, 2, commands, answers)
                os.chdir(setup["work"])
                os.environ.clear()
                os.environ.update(setup["env"])
                repl.serve(commands, answers, setup["paths"])
            os._exit(70)
        for fd in (commands, answers, nothing):
            os.close(fd)
        self.died = os.pidfd_open(self.pid)

    def used(self) -> float:
        """CPU-seconds until now; 0 where the kernel does not tell."""
        try:
            return time.clock_gettime(~self.pid << 3 | CPU_CLOCK)
        except OSError:
            return 0.0

    def close(self) -> None:
        self.out.close()
        self.err.close()
        for fd in (self.ask, self.answer, self.died):
            os.close(fd)


class Runner:
    """One request after the other; a `cancel` is heard while one runs."""

    def __init__(self, control: int) -> None:
        self.control = control
        self.children = Children()
        self.python: Interpreter | None = None
        self._received = bytearray()
        self._frames: list[tuple[tuple[Any, ...], bytes]] = []
        self._number = 0
        self.before = 0.0
        """CPU-seconds that the process of this request had used when it came."""

    # the socket

    def hear(self) -> None:
        """Takes in what the host sent; its end is the sandbox's end."""
        piece = os.read(self.control, 1 << 20)
        if not piece:
            self.end()
        self._received += piece
        while len(self._received) >= 8:
            head, body = (int.from_bytes(self._received[at : at + 4], "little") for at in (0, 4))
            if len(self._received) < 8 + head + body:
                return
            frame = bytes(self._received[8 : 8 + head + body])
            del self._received[: 8 + head + body]
            self._frames.append((marshal.loads(frame[:head]), frame[head:]))

    def tell(self, what: str, *figures: object, body: bytes = b"") -> None:
        head = " ".join(map(str, (self._number, what, *figures))).encode()
        frame = memoryview(len(head).to_bytes(4, "little") + len(body).to_bytes(4, "little") + head + body)
        while frame:
            frame = frame[os.write(self.control, frame) :]

    def cancelled(self) -> bool:
        """Whether the running request was cancelled; cancels of others are past and forgotten."""
        found = any(head[:2] == (self._number, "cancel") for head, _ in self._frames)
        self._frames = [frame for frame in self._frames if frame[0][1] != "cancel"]
        return found

    def serve(self) -> NoReturn:
        deaf_to_interrupts()
        os.set_inheritable(self.control, False)
        close_all_but(0, 1, 2, self.control)
        closed_to_others(True)
        if os.getpid() != 1:
            adopt_orphans()
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        while True:
            while not self._frames:
                if poll.poll(1000 * TICK if self.python else None):
                    self.hear()
                elif self.python and (self.too_much() or self.children.ended(self.python.pid)):
                    self.forget()
            head, body = self._frames.pop(0)
            self._number = head[0]
            try:
                getattr(self, f"do_{head[1]}")(*head[2:], body)
            except OSError as error:
                self.tell("error", error.errno or errno.EIO, body=os.fsencode(error.strerror or str(error)))
            except ValueError as error:  # a NUL in a path
                self.tell("error", errno.EINVAL, body=str(error).encode())

    def end(self) -> NoReturn:
        """Ends all below and itself: a namespace's processes go with its first, those of a plain folder must be looked for."""
        self.children.kept = 0
        self.children.sweep()
        os._exit(0)

    # requests

    def do_open(self, setup: dict[str, Any], _: bytes) -> None:
        self.setup = setup
        os.umask(0o022)
        os.chdir(setup["work"])
        self.tell("opened")

    def do_cancel(self, _: bytes) -> None:
        """Came when nothing ran any more."""

    def do_read(self, path: str, _: bytes) -> None:
        self.tell("data", body=files.read(path, self.setup["largest"]))

    def do_write(self, path: str, body: bytes) -> None:
        files.write(path, body)
        self.tell("data")

    def do_list(self, path: str, _: bytes) -> None:
        self.tell("data", body=files.listing(path))

    def do_live(self, _: bytes) -> None:
        """Whether anything runs, or a Python holds names."""
        self.tell("data", body=b"1" if self.children.reap() else b"")

    def do_exec(self, argv: list[str], cwd: str, env: dict[str, str], seconds: float, most: int, body: bytes) -> None:
        out, err, self.before = Stream(most), Stream(most), 0.0
        given, feed = os.pipe()
        began = time.monotonic()
        pid = self.children.fork()
        if not pid:
            try:
                begin(self.control, (given, out.end, err.end), self.setup["limits"])
                become(argv, cwd, {**self.setup["env"], **env})
            finally:
                os._exit(126)
        os.close(given)
        out.close(reading=False)
        err.close(reading=False)
        died = os.pidfd_open(pid)
        why = self.attend(died, died, (out, err), Feed(feed, body, closes=True), began + seconds)
        ended = self.children.end(pid)
        self.children.sweep()
        os.close(died)
        for stream in (out, err):
            stream.drain(LATE)
            os.close(stream.fd)
        self.answer(ended.status, ended.cpu, why, began, out, err)
        if self.python and self.too_much():
            self.forget()

    def do_python(self, seconds: float, body: bytes) -> None:
        began = time.monotonic()
        if self.python and self.children.ended(self.python.pid):
            self.forget()
        if self.python is None:
            self.python = Interpreter(self.children, self.control, self.setup)
            self.children.kept = self.python.pid
        python = self.python
        self.before = python.used()
        feed = Feed(python.ask, len(body).to_bytes(8, "little") + body, closes=False)
        why = self.attend(python.died, python.answer, (python.out, python.err), feed, began + seconds)
        try:
            status = b"" if why else os.read(python.answer, PIPE)[:1]
        except BlockingIOError:
            status = b""
        if not status:  # time is up, or it died
            ended = self.forget()
            self.answer(ended.status, ended.cpu, why, began, python.out, python.err)
            return
        python.out.drain(LATE)
        python.err.drain(LATE)
        self.answer(int(status != repl.ENDED_WELL), python.used(), why, began, python.out, python.err)
        python.out.renew()
        python.err.renew()

    # what they share

    def attend(self, died: int, done: int, streams: tuple[Stream, Stream], feed: Feed, until: float) -> str:
        """Reads, writes and listens until `done` or `died` speaks; else why it must end."""
        poll = select.poll()
        for fd in {died, done, self.control, *(stream.fd for stream in streams)}:
            poll.register(fd, select.POLLIN)
        if feed.push():
            poll.register(feed.fd, select.POLLOUT)
        by_fd = {stream.fd: stream for stream in streams}
        why, looked = "cancelled" if self.cancelled() else "", time.monotonic()
        while not why:
            ready = [fd for fd, _ in poll.poll(1000 * max(0.0, min(TICK, until - time.monotonic())))]
            for fd in ready:
                if fd in by_fd:
                    by_fd[fd].drain()
                    if not by_fd[fd].open:
                        poll.unregister(fd)
                elif fd == feed.fd:
                    if not feed.push():
                        poll.unregister(fd)
                elif fd == self.control:
                    self.hear()
                    why = "cancelled" if self.cancelled() else why
            if done in ready or died in ready:
                break
            now = time.monotonic()
            if now >= until:
                why = why or "timeout"
            if now - looked >= TICK:
                looked = now
                self.children.reap()
                why = why or ("memory" if self.too_much() else "")
        feed.close()
        return why

    def answer(self, status: int, used: float, why: str, began: float, out: Stream, err: Stream) -> None:
        used_up = status in BY_KILL and used >= self.setup["limits"]["CPU"] / 2  # the limit runs by a coarser clock
        if not why and (status in BY_CPU or used_up):
            why = "cpu"
        truncated = int(out.truncated or err.truncated)
        seconds, cpu = f"{time.monotonic() - began:.6f}", f"{max(0.0, used - self.before):.6f}"
        self.tell("ran", status, truncated, seconds, cpu, len(out.kept), why or "-", body=bytes(out.kept + err.kept))

    def forget(self) -> Ended:
        """Ends the session's Python and all that it left; its streams have what was still in their pipes."""
        assert self.python is not None
        python, self.python = self.python, None
        ended = self.children.end(python.pid)
        self.children.kept = 0
        self.children.sweep()
        python.out.drain(LATE)
        python.err.drain(LATE)
        python.close()
        return ended

    def too_much(self) -> bool:
        """Whether the processes hold more memory than they may, where no cgroup sees to that."""
        most = self.setup["memory"]
        return bool(most) and self.children.memory(most) > most


def main() -> NoReturn:
    """`python -I -S -c "...; main()" FD`"""
    del sys.path[0]  # where this came from, no business of the code's
    runner = Runner(int(sys.argv[1]))
    try:
        runner.serve()
    finally:
        runner.end()
