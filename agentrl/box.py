"""A sandbox as a workflow holds it: every call is an effect of the journal, recorded, replayed and forked with the rest.

What the record holds is handed back without a sandbox. The first call that the record does not hold opens a session and brings
it to where the record ends: as a copy of a live one, or by making the recorded calls again and comparing what they give.
"""

from __future__ import annotations

import base64
import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from agentrl.effect import digest_request
from agentrl.episode import EMPTY_MAP
from agentrl.errors import UserError
from agentrl.sandbox import Command, Entry, Ran, SandboxLimits, Session
from agentrl.workflow import Ask, Asked, Outcome, World

Method = Literal["exec", "python", "read", "write", "list"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a box, and what it gave, as the journal has it."""

    method: Method
    arguments: tuple[Any, ...]
    given: Mapping[str, Any] = EMPTY_MAP


class Sessions(Protocol):
    """The live sandboxes of one episode, as the runtime keeps them."""

    @property
    def limits(self) -> SandboxLimits:
        """Of a box that names no other."""
        ...

    async def call(self, box: str, limits: SandboxLimits, past: Sequence[Call], call: Call) -> Mapping[str, Any]:
        """What a call of a box gives in which the past ones were made; the session is opened if there is none."""
        ...

    async def close(self, box: str) -> None: ...


class Box:
    """An open sandbox of an episode. Its methods are those of `agentrl.sandbox.Session`, in text or bytes."""

    def __init__(self, world: World, sessions: Sessions, name: str, limits: SandboxLimits) -> None:
        self.name = name
        self.limits = limits
        self._world = world
        self._sessions = sessions
        self._past: list[Call] = []
        self._closed = False

    async def __aenter__(self) -> Box:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._closed = True
        if kind is not None:
            return  # the runtime ends what the episode leaves; here nothing may be waited for

        async def run(asked: Asked) -> Outcome:
            del asked
            await self._sessions.close(self.name)
            return Outcome()

        await self._world.perform(Ask("effect", "sandbox.close", digest_request("sandbox", self.name), self.name, run))

    def secret(self, name: str) -> str:
        """A word that nothing in the sandbox knows; the same on replay, another in a fork."""
        return f"{self._world.seed('secret', self.name, name):016x}"

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        cwd: str = "/work",
        env: Mapping[str, str] = EMPTY_MAP,
        timeout: float | None = None,  # noqa: ASYNC109 - the sandbox ends what it runs, and says that it did
    ) -> Ran:
        """Runs a shell line, or an argv. A command that fails is a result."""
        argv = command if isinstance(command, str) else tuple(command)
        given = await self._call("exec", Command(argv, _bytes(stdin), cwd, dict(env), timeout))
        return _ran(given)

    async def python(self, code: str, *, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - as above
        """Runs Python in the session's one interpreter, whose names last."""
        if not isinstance(code, str):  # pyright: ignore[reportUnnecessaryIsInstance]  - a caller may have no types
            raise UserError(f"a box's Python code is a string, got {code!r:.80}")
        if timeout is not None and not timeout > 0:
            raise UserError(f"a box's timeout must be > 0 seconds, got {timeout}")
        return _ran(await self._call("python", code, timeout))

    async def read(self, path: str) -> bytes:
        """A file's bytes. `OSError` as `open` would raise it."""
        return unpacked((await self._call("read", path))["data"])

    async def write(self, path: str, data: str | bytes) -> None:
        """Writes a file, making the folders above it."""
        await self._call("write", path, _bytes(data))

    async def list(self, path: str = "/work") -> Sequence[Entry]:
        """What a folder holds, by name."""
        return [Entry(*entry) for entry in (await self._call("list", path))["entries"]]

    async def _call(self, method: Method, *arguments: Any) -> Mapping[str, Any]:
        if self._closed:
            raise UserError(f"{self.name} is closed; call it inside its `async with team.sandbox() as box` block")

        async def run(asked: Asked) -> Outcome:
            del asked
            return Outcome(await self._sessions.call(self.name, self.limits, tuple(self._past), Call(method, arguments)))

        said = [self.name, method, *(_said(argument) for argument in arguments)]
        note = f"{self.name}: {said[2]!s:.100}"
        ask = Ask("effect", f"sandbox.{method}", digest_request("sandbox", json.dumps(said)), note, run)
        given = cast("Mapping[str, Any]", (await self._world.perform(ask)).value)
        self._past.append(Call(method, arguments, given))
        if "error" in given:
            kind, number, message, path = given["error"]
            raise getattr(builtins, kind)(number, message, path)
        return given


async def make(session: Session, call: Call) -> dict[str, Any]:
    """Makes a call; what it gave as JSON. An `OSError` is something that it gave."""
    method, arguments = call.method, call.arguments
    try:
        match method:
            case "exec":
                return _of_ran(await session.exec(*arguments))
            case "python":
                return _of_ran(await session.python(*arguments))
            case "read":
                return {"data": packed(await session.read(*arguments))}
            case "write":
                await session.write(*arguments)
                return {}
            case "list":
                return {"entries": [[entry.name, entry.kind, entry.size] for entry in await session.list(*arguments)]}
    except OSError as error:
        path = str(error.filename or arguments[0])
        return {"error": [type(error).__name__, error.errno or 0, error.strerror or str(error), path]}


def differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How a call that was made again differs from what the record holds; empty = it does not. Times may differ."""
    for name in sorted({*before, *now} - {"seconds", "cpu_seconds", "killed"}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r:.200}, and is {now.get(name)!r:.200}"
    return ""


def packed(data: bytes) -> Any:
    """Bytes as JSON: text where they are UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def unpacked(value: Any) -> bytes:
    """The inverse of `packed`."""
    return value.encode("utf-8") if isinstance(value, str) else base64.b64decode(value["base64"])


def _bytes(data: str | bytes) -> bytes:
    """Text as UTF-8; half a surrogate pair, which has none, as Python writes it with surrogatepass."""
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass")
    if isinstance(data, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        return bytes(data)
    raise UserError(f"what goes into a box is text or bytes, got {data!r:.80} ({type(data).__name__})")


def _said(argument: Any) -> Any:
    """An argument as it is compared."""
    if isinstance(argument, Command):
        argv = argument.argv if isinstance(argument.argv, str) else list(argument.argv)
        return [argv, packed(argument.stdin), argument.cwd, dict(argument.env), argument.timeout]
    return packed(argument) if isinstance(argument, bytes) else argument


def _of_ran(ran: Ran) -> dict[str, Any]:
    given: dict[str, Any] = {"status": ran.status, "stdout": packed(ran.stdout), "stderr": packed(ran.stderr)}
    flags = {"truncated": ran.truncated, "timed_out": ran.timed_out, "killed": ran.killed}
    return {
        **given,
        "seconds": ran.seconds,
        "cpu_seconds": ran.cpu_seconds,
        **{name: value for name, value in flags.items() if value},
    }


def _ran(given: Mapping[str, Any]) -> Ran:
    told = dict(given)
    return Ran(stdout=unpacked(told.pop("stdout")), stderr=unpacked(told.pop("stderr")), **told)
