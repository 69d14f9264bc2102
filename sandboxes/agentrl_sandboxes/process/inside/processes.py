"""Processes of a sandbox: how one is born with its limits, and how all that it left behind end."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import resource
import time

TYPE_CHECKING = False  # `typing` and `signal` take milliseconds to load, of each sandbox
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator, Mapping
    from typing import NoReturn
else:
    import _signal as signal

DUMPABLE = 4
"""PR_SET_DUMPABLE: whether a process of the same user may look into this one (/proc/N/mem, /proc/N/fd)."""
DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
"""Python ignores them, and an ignored signal is inherited."""
CHILD_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: orphans below this process become its children."""
_prctl = ctypes.CDLL(None).prctl


def closed_to_others(closed: bool) -> None:
    """Whether this process can be looked into by others of its user."""
    _prctl(DUMPABLE, 0 if closed else 1, 0, 0, 0)


def adopt_orphans() -> None:
    """Makes this process what process 1 is by itself: the parent of every orphan below it."""
    _prctl(CHILD_SUBREAPER, 1, 0, 0, 0)


def deaf_to_interrupts() -> None:
    """To process 1 a signal without a handler does nothing; Python has one for this."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Ended:
    """How a child ended: its status as subprocess gives it (-n = signal n) and the CPU seconds it took."""

    def __init__(self, status: int, cpu: float) -> None:
        self.status, self.cpu = status, cpu


class Children:
    """The children of this process, which inherits every orphan: as process 1, or as their subreaper."""

    def __init__(self) -> None:
        self._own = os.getpid()
        self._ended: dict[int, Ended | None] = {}
        self.kept: int = 0
        """The child that `sweep` leaves alive, with all that descends from it; 0 = none."""

    def reap(self) -> bool:
        """Takes in what has ended. False: there is no child any more."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid in self._ended:  # else an orphan, of whom nobody asks
                self._ended[pid] = Ended(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)

    def fork(self) -> int:
        """`os.fork`, of a child that will be asked for by `ended`."""
        pid = os.fork()
        if pid:
            self._ended[pid] = None
        return pid

    def ended(self, pid: int) -> bool:
        self.reap()
        return self._ended[pid] is not None

    def end(self, pid: int) -> Ended:
        """Ends a child that still lives and waits for it; how it ended, to be asked once."""
        while (ended := self._ended[pid]) is None:
            kill(pid)
            self.reap()
            time.sleep(0 if self._ended[pid] else 0.0005)
        del self._ended[pid]
        return ended

    def below(self) -> dict[int, int]:
        """Each process that /proc shows, with the one that its line of parents leads to: this one, the kept one, or another."""
        line = dict(parents())
        found: dict[int, int] = {}
        for pid in line:
            above = pid
            while above in line and above != self.kept:
                above = line[above]
            found[pid] = above
        return found

    def strangers(self) -> tuple[list[int], bool]:
        """Processes below this one that do not descend from the kept one; and whether one's descent was in doubt."""
        found = self.below()
        doubt = any(above not in (self._own, self.kept, 0) for above in found.values())  # its parent ended between two looks
        return [pid for pid, above in found.items() if above == self._own], doubt

    def sweep(self, seconds: float = 1.0) -> None:
        """Ends every stranger: what a command left running does not outlive it.

        A storm of forks may outrun the looks at /proc; then everything ends at once, the kept one too.
        """
        until = time.monotonic() + seconds
        while self.reap():
            found, doubt = self.strangers()
            if self.kept and not found and not doubt:
                return
            for pid in found:
                kill(pid)
            if time.monotonic() > until:
                break
            time.sleep(0.0005)
        while self._own == 1 and self.reap():  # never elsewhere: -1 is every process that may be signalled
            kill(-1)
            time.sleep(0.0005)

    def memory(self, enough: int) -> int:
        """Bytes that the living processes hold: a sum that counts shared pages twice; if that is above `enough`, exactly."""
        parts = [f"/proc/{pid}" for pid, above in self.below().items() if above in (self._own, self.kept or self._own)]
        rough = sum(_kilobytes(f"{part}/status", (b"RssAnon:", b"RssShmem:")) for part in parts) * 1024
        return rough if rough <= enough else sum(_kilobytes(f"{part}/smaps_rollup", (b"Pss:",)) for part in parts) * 1024


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    try:  # noqa: SIM105 - contextlib takes milliseconds to load
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def parents() -> Iterator[tuple[int, int]]:
    """Every process that /proc shows but this one, each with its parent. Zombies too: one may have threads that live."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        try:
            with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                parent = file.read(512).rpartition(b")")[2].split()[1]
        except (OSError, IndexError):  # gone since the listing
            continue
        yield int(name), int(parent)


def _kilobytes(path: str, keys: tuple[bytes, ...]) -> int:
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(keys))
    except OSError:  # gone, or closed to others
        return 0


def limit(limits: Mapping[str, int]) -> None:
    """Sets hard limits, by the names of `resource` without RLIMIT_; CPU gets a second between its signal and its end."""
    for name, most in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        most = most if hard < 0 else min(most, hard)
        resource.setrlimit(kind, (most, most + 1 if name == "CPU" and hard < 0 else most))


def close_all_but(*kept: int) -> None:
    """Whatever else this process inherited."""
    edges = sorted({-1, *kept, 1 << 16})
    for low, high in itertools.pairwise(edges):
        if high > low + 1:  # an empty range would be taken for everything
            os.closerange(low + 1, high)


def begin(control: int, streams: tuple[int, int, int], limits: Mapping[str, int]) -> None:
    """First steps of a forked child: its own session, its streams, nothing of the control socket, its limits."""
    os.close(control)
    os.setsid()
    for target, source in enumerate(streams):
        os.dup2(source, target)
    for number in DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    closed_to_others(False)  # only now: what it must not show is closed
    limit(limits)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory ends, the command ends and not process 1
    except OSError:
        pass


def _places(program: str, env: Mapping[str, str]) -> list[str]:
    """Where it may be. `os.execvpe` would look there, too, and load a module for that in each child: a millisecond."""
    if "/" in program:
        return [program]
    return [f"{folder or '.'}/{program}" for folder in env["PATH"].split(":")]


def become(argv: list[str], cwd: str, env: dict[str, str]) -> NoReturn:
    """Goes on as another program; status 127 or 126 as a shell has it where it cannot."""
    what = cwd
    try:
        os.chdir(cwd)
        what = argv[0]
        for path in _places(what, env):
            try:
                os.execve(path, argv, env)
            except FileNotFoundError:
                continue
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        os.write(2, os.fsencode(f"{what}: {reason}\n"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
