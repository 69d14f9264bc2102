"""The process that starts sandboxes: small, clean and single-threaded, so that a fork of it costs little and shows nothing.

Started with an empty environment and one socket to the host (SOCK_SEQPACKET, one JSON object a packet):

    host                                                     launcher
    the setup                                                {"cgroup": version, ...} or {"refused": why}
    {"start": slot, ...} and a socket for its process 1
                                                             {"listening": slot} and a socket for each place, if any
    {"end": slot}                                            {"ended": slot, "notes": what bubblewrap and process 1 said}

It is process 1 of a process namespace of its own, below a parent that waits for it: when it ends, however it ends, the kernel
ends every sandbox, those half begun, too. It ends with the host: at end of file, or by its parent's death.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from agentrl_sandboxes.process import cgroups, kernel, netspace
from agentrl_sandboxes.process.inside.processes import kill, parents
from agentrl_sandboxes.process.stage import Stage

LONGEST = 1 << 16
NOTES = 2000
"""Characters that are kept of what bubblewrap says."""


@dataclass
class Slot:
    """A sandbox that runs: bubblewrap outside (a child), its process 1 once bubblewrap has told, and what it says."""

    number: int
    pid: int
    """bubblewrap's, outside."""
    outer: int
    notes: int
    said: bytes = b""
    inner: int = -1
    doomed: bool = False
    """It shall end as soon as process 1 is known: bubblewrap alone, killed too early, would leave it waiting for ever."""
    waiting: set[int] = field(default_factory=set[int])
    """Process descriptors that have not ended."""


class Launcher:
    """Starts, watches and ends sandboxes, and tells the host when nothing of one is left."""

    def __init__(self, host: socket.socket, stage: Stage, groups: cgroups.Cgroups | None) -> None:
        self._host = host
        self._stage = stage
        self._groups = groups
        self._poll = select.poll()
        self._by_fd: dict[int, Slot] = {}
        self._slots: dict[int, Slot] = {}

    def run(self) -> None:
        """Until the host's end of the socket closes."""
        self._poll.register(self._host, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._host.fileno():
                    if not self._hear():
                        return
                elif fd in self._by_fd:
                    self._look(self._by_fd[fd], fd)

    def _tell(self, message: dict[str, Any]) -> None:
        tell(self._host, message)

    def _hear(self) -> bool:
        packet, fds, _, _ = socket.recv_fds(self._host, LONGEST, 1)
        if not packet:
            return False
        message = json.loads(packet)
        if "start" in message:
            self._start(message, fds[0])
            os.close(fds[0])
        elif message["end"] in self._slots:  # else it ended by itself, which the host has been told
            self._kill(self._slots[message["end"]])
        return True

    def _start(self, asked: dict[str, Any], control: int) -> None:
        notes, said = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                self._become(asked, control, said)
            finally:
                os._exit(1)
        os.close(said)
        os.set_blocking(notes, False)
        slot = Slot(asked["start"], pid, os.pidfd_open(pid), notes)
        self._slots[slot.number] = slot
        slot.waiting.add(slot.outer)
        for fd in (slot.outer, notes):
            self._watch(slot, fd)

    def _become(self, asked: dict[str, Any], control: int, said: int) -> NoReturn:
        """In the fork: its places, its cgroup, its user; then bubblewrap."""
        os.dup2(said, 2)
        try:
            home = self._stage.home(asked)
            if self._groups is not None:
                self._groups.enter(asked["start"], asked["memory_mb"], asked["disk_mb"], asked["processes"])
            for fd in (control, said):
                os.set_inheritable(fd, True)
            argv = self._stage.command(home, control, said, asked["network"])
            if asked["network"]:
                netspace.enclose(asked["network"], partial(self._offer, asked["start"]))
            if self._stage.first_user:
                kernel.become(self._stage.first_user + asked["start"])
            os.execve(argv[0], argv, {})
        except OSError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(1)

    def _offer(self, slot: int, listeners: list[int]) -> None:
        socket.send_fds(self._host, [json.dumps({"listening": slot}).encode()], listeners)

    def _watch(self, slot: Slot, fd: int) -> None:
        self._by_fd[fd] = slot
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._by_fd[fd]
        os.close(fd)

    def _look(self, slot: Slot, fd: int) -> None:
        """One of a slot's descriptors spoke: its notes, or the end of bubblewrap or of process 1."""
        if fd == slot.notes:
            try:
                said = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            slot.said = (slot.said + said)[-NOTES:]
            if slot.inner < 0 and b"}" in slot.said:
                self._found_inner(slot)
            if not said:
                slot.notes = -1
                self._unwatch(fd)
            return
        slot.waiting.discard(fd)
        self._unwatch(fd)
        while _reaped():
            pass
        slot.doomed = True  # without bubblewrap or without process 1: what is left of it has to go, too
        if slot.notes >= 0:
            self._look(slot, slot.notes)
        if not slot.waiting:
            self._finish(slot)

    def _finish(self, slot: Slot) -> None:
        if slot.notes >= 0:
            self._unwatch(slot.notes)
        del self._slots[slot.number]
        if slot.inner < 0:  # bubblewrap ended before it told of its child, which may wait for it in vain
            begun = {each.pid for each in self._slots.values()}
            for pid, parent in parents():
                if parent == os.getpid() and pid not in begun:
                    kill(pid)
        self._tell({"ended": slot.number, "notes": slot.said.decode("utf-8", "replace")})

    def _found_inner(self, slot: Slot) -> None:
        """bubblewrap has told the number of process 1: {"child-pid": N, ...}."""
        text, _, slot.said = slot.said.partition(b"}")
        pid = int(text.rpartition(b'"child-pid":')[2].split(b",")[0])
        try:
            slot.inner = os.pidfd_open(pid)
        except ProcessLookupError:  # gone already, and bubblewrap with it
            slot.inner = slot.outer
            return
        slot.waiting.add(slot.inner)
        self._watch(slot, slot.inner)
        if slot.doomed:
            self._kill(slot)

    def _kill(self, slot: Slot) -> None:
        """Ends process 1, and the kernel with it all the others of its namespace; bubblewrap then ends by itself."""
        slot.doomed = True
        if slot.inner in slot.waiting:
            with suppress(ProcessLookupError):  # it ended by itself just now
                signal.pidfd_send_signal(slot.inner, signal.SIGKILL)


def tell(host: socket.socket, message: dict[str, Any]) -> None:
    """One packet to the host."""
    host.send(json.dumps(message).encode())


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def main() -> None:
    """`python -I -S -c "...; main()" FD`, whose parent is the host."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    kernel.die_with_parent()
    host = socket.socket(fileno=fd)
    setup = json.loads(host.recv(LONGEST))
    refused = kernel.seclude()
    if refused:
        return tell(host, {"refused": refused})
    groups = cgroups.find()
    try:
        stage = Stage(setup, watched=groups is None)
    except (OSError, KeyError) as error:
        return tell(host, {"refused": f"the sandboxes' read-only files cannot be laid out: {error!r}"})
    launcher = os.fork()  # into the new process namespace, as its first
    if not launcher:
        return _first(host, stage, groups)
    host.close()
    first = os.pidfd_open(launcher)

    def terminate(_number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):  # it saw the end of the host before we were told of it
            signal.pidfd_send_signal(first, signal.SIGKILL)

    signal.signal(signal.SIGTERM, terminate)
    os.waitpid(launcher, 0)
    if groups is not None:
        groups.remove()
    return None


def _first(host: socket.socket, stage: Stage, groups: cgroups.Cgroups | None) -> None:
    """The launcher proper, until the host goes."""
    kernel.die_with_parent(signal.SIGKILL)
    try:
        kernel.mount("proc", "/proc", "proc", kernel.NO_SETUID | kernel.NO_DEVICES)  # in which bubblewrap finds itself
    except OSError as error:
        return tell(
            host, {"refused": f"{error}; in a container, /proc is masked (docker run --security-opt systempaths=unconfined)"}
        )
    ready = {"events": groups.events if groups else "", "cgroup": groups.version if groups else 0}
    try:
        tell(host, {**ready, "users": bool(stage.first_user)})
        Launcher(host, stage, groups).run()
    except (BrokenPipeError, ConnectionResetError):  # the host went without a word
        pass
    return None
