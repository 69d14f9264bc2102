"""The contract of sandboxes: where untrusted code runs.

    async with team.sandbox() as box:
        await box.write("solution.py", code)
        ran = await box.exec(["python3", "solution.py"], stdin="4 5", timeout=5)
        print(ran.status, ran.text)

A spec (`Process()`, `Docker(image=...)`: `Experiment(sandbox=...)`) opens a `Backend`, which opens sessions; a `Box` is what a
workflow holds: a session whose every call is an effect of the journal. A command that fails is a result; a sandbox that fails
is a `SandboxError`, which ends the episode as lost, for no model is to blame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

from agentrl.episode import EMPTY_MAP
from agentrl.errors import UserError

Fork: TypeAlias = Literal["exact", "replay", "none"]
"""How a session goes on twice: `exact`, files and live processes are copied; `replay`, its calls are made again in another and
compared; `none`, it cannot."""
Network: TypeAlias = "Literal['none'] | tuple[str, ...]"
"""No network at all, not even a loopback to the host's; or the hosts, as `name:port`, that may be connected to by TCP:
names and ports as the machine knows them on which agentrl runs, `localhost:8000` too. One host may be a string."""
LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAMED = re.compile(rf"(?=[^:]*[A-Za-z]|127\.0\.0\.1:)(?=.{{1,259}}$)(?:{LABEL}\.)*{LABEL}:([1-9][0-9]{{0,4}})")
MOST_HOSTS = 128


RANGES: Mapping[str, tuple[float, int | float]] = {
    "memory_mb": (16, 1 << 24),
    "processes": (8, 1 << 15),
    "cpu_seconds": (1, 1 << 24),
    "open_files": (16, 1 << 20),
    "disk_mb": (1, 1 << 24),
    "output": (64, 1 << 30),
    "timeout": (0.01, 1e7),
}
"""What limits may be. With less, nothing runs, and a model would pay for a setting."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one session may use. All of its processes together, unless said."""

    memory_mb: int = 512
    """Beside what its files hold, which lie in memory too and are bounded by `disk_mb`: what bounds it counts both together."""
    processes: int = 64
    """Threads count, too."""
    cpu_seconds: int = 60
    """Of one process."""
    open_files: int = 256
    """Of one process."""
    disk_mb: int = 64
    """What its writable places hold."""
    output: int = 1 << 20
    """Bytes of each stream of a call that are kept; what comes after is read and thrown away."""
    timeout: float = 30.0
    """Seconds of a call that names no other."""
    network: Network = "none"

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            kinds = (int, float) if isinstance(most, float) else (int,)
            if type(value) not in kinds or not least <= value <= most:
                raise UserError(f"a sandbox's {name} must be {least:g} to {most:g}, got {value!r}")
        if self.network != "none":
            object.__setattr__(self, "network", _hosts(self.network))


def _hosts(network: object) -> tuple[str, ...]:
    """A list of hosts, checked."""
    hosts = tuple(cast("Sequence[object]", (network,) if isinstance(network, str) else network))
    for host in hosts:
        found = NAMED.fullmatch(host) if isinstance(host, str) else None
        if found is None or int(found[1]) > 65535:
            plain = isinstance(host, str) and ":" not in host
            do = (
                f"add the port: {host}:443" if plain else "for an address, write a name that this machine's /etc/hosts gives it"
            )
            raise UserError(f'a sandbox\'s network is "none" or hosts as "name:port", got {host!r}; {do}')
    if not 0 < len(hosts) <= MOST_HOSTS or len(set(hosts)) < len(hosts):
        raise UserError(f'a sandbox\'s network is "none" or 1 to {MOST_HOSTS} different hosts, got {network!r:.200}')
    return cast("tuple[str, ...]", hosts)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command, or a piece of Python in the session, came to."""

    status: int
    """Exit status; -n = ended by signal n."""
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: bool = False
    """A stream had more than `SandboxLimits.output` bytes."""
    timed_out: bool = False
    seconds: float = 0.0
    """Of the clock."""
    cpu_seconds: float = 0.0
    """Of the processor, all its processes that have ended together; 0 where the sandbox cannot tell."""
    killed: str = ""
    """Which limit ended it: "memory", "cpu", "timeout"; empty = none that is known."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with status 0."""
        return self.status == 0 and not self.timed_out

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are no UTF-8 are shown as escapes."""
        return self.stdout.decode("utf-8", "backslashreplace")

    @property
    def error_text(self) -> str:
        """Standard error as text."""
        return self.stderr.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a folder of a sandbox holds: a name (not a path), what it is, and its size in bytes."""

    name: str
    kind: Literal["file", "folder", "link", "other"]
    size: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `argv`, or a line for `sh -c`. Paths are the sandbox's; relative ones begin in /work."""

    argv: tuple[str, ...] | str
    stdin: bytes = b""
    cwd: str = "/work"
    env: Mapping[str, str] = EMPTY_MAP
    """Beside PATH, HOME and LANG, which are the sandbox's."""
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.argv:
            raise UserError("a command needs an argv or a shell line, got an empty one")
        given = (*((self.argv,) if isinstance(self.argv, str) else self.argv), self.cwd, *self.env, *self.env.values())
        for word in given:
            if not isinstance(word, str):  # pyright: ignore[reportUnnecessaryIsInstance]  - a caller may have no types
                raise UserError(f"a command's argv, cwd and env are strings, got {word!r} ({type(word).__name__}); str() it")
        if self.timeout is not None and not self.timeout > 0:
            raise UserError(f"a command's timeout must be > 0 seconds, got {self.timeout}")


class Session(Protocol):
    """One open sandbox. Its calls come one after the other; cancelling a call ends what it runs.

    Paths are the sandbox's; relative ones begin in /work. A file that is not there, a folder that cannot be read and the like
    raise `OSError` (FileNotFoundError ...): they are the code's doing. `SandboxError` says that the sandbox itself is gone or
    broken, and how.
    """

    async def exec(self, command: Command) -> Ran:
        """Runs a command. It never raises `OSError`: a `cwd` or program that is not there is status 127, one that cannot be run
        126, with the reason on stderr; what timed out is status -9. What it leaves running is ended with it."""
        ...

    async def python(self, code: str, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - what times out is a result
        """Runs code in the session's one Python, whose names last. The value of a last expression is printed as a REPL does.

        An exception is status 1, with its traceback on stderr; `exit(n)` is status n and begins the names anew, as does a
        timeout or a crash.
        """
        ...

    async def read(self, path: str) -> bytes:
        """The bytes of a regular file, at most `disk_mb`; a link is not followed out of the sandbox."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Writes a file, making the folders above it."""
        ...

    async def list(self, path: str) -> Sequence[Entry]:
        """What a folder holds, by name; any byte may stand in a name (surrogateescape)."""
        ...

    async def fork(self) -> Session | None:
        """Another session with the same files and the same live processes; None = it cannot now, make its calls again."""
        ...

    async def close(self) -> None:
        """Ends everything in it. Never raises; may be called twice."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Opens sessions."""

    @property
    def fork(self) -> Fork:
        """The best that its sessions can do."""
        ...

    @property
    def isolation(self) -> str:
        """One line for people: what stands between the code and the host."""
        ...

    async def session(self, limits: SandboxLimits) -> Session:
        """A fresh session, from the pool if one is warm. `SandboxError` if none can be opened."""
        ...


@runtime_checkable
class SandboxSpec(Protocol):
    """A frozen dataclass that opens a backend; `Experiment(sandbox=...)`."""

    @property
    def limits(self) -> SandboxLimits:
        """Of sessions that name no other."""
        ...

    def open(self) -> AbstractAsyncContextManager[Backend]:
        """The backend, for as long as the block lasts; `UserError` if this machine cannot isolate, with what is missing."""
        ...
