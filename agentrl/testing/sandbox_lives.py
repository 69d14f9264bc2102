"""Checks of sessions: how they begin, fork and end. The docstring of each is its claim."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Command, Ran, Session
from agentrl.testing.claims import require
from agentrl.testing.sandbox_subject import GROWING, Subject, is_lost, same, sh, works


async def the_backend_says_what_it_is(s: Subject) -> None:
    """`fork` is exact, replay or none; `isolation` is one line for people."""
    require(s.backend.fork in ("exact", "replay", "none"), f"fork is {s.backend.fork!r}")
    told = s.backend.isolation
    require(len(told) > 10 and "\n" not in told, f"isolation is {told!r}, expected one line")


async def each_session_is_fresh(s: Subject) -> None:
    """A session begins with an empty /work and no names; what one does, another does not see."""
    first = await s.session()
    await first.write("mine", b"1")
    await first.python("x = 1")
    second = await s.session()
    same(list(await second.list("/work")), [], "what lies in the /work of a fresh session")
    require("NameError" in (await second.python("x")).error_text, "a name of one session is known in another")
    same(await first.read("mine"), b"1", "the first session's file")


async def limits_of_its_own_are_kept(s: Subject) -> None:
    """A session that names limits gets them, beside others that do not."""
    own = await s.session(replace(s.limits, output=64))
    same((await sh(own, "printf %065d 0")).stdout, b"0" * 64, "output with a limit of 64 bytes")
    same((await sh(await s.session(), "printf %065d 0")).stdout, b"0" * 65, "output of a session with the spec's limits")


async def a_fork_is_exact_or_none(s: Subject) -> None:
    """`fork` gives a session with the same files, from which neither sees what the other does; or None."""
    session = await s.session()
    await session.write("d/kept", b"before")
    await sh(session, "ln -s kept d/link; chmod 751 d/kept")
    other = await s.fork(session)
    require(other is not None or s.backend.fork != "exact", "fork of quiet files gave None, and the backend says exact")
    if other is None:
        return
    require(s.backend.fork != "none", "fork gave a session, and the backend says that it has none")
    look = "cat d/link; ls -ln d/kept | cut -c 1-10"
    same((await sh(other, look)).text, (await sh(session, look)).text, "the files of a fork")
    await other.write("d/kept", b"changed")
    same(await session.read("d/kept"), b"before", "a file that the fork has changed")
    await works(session, "a fork")


async def a_fork_of_live_python_is_exact_or_none(s: Subject) -> None:
    """`fork` of a session whose Python holds names gives another that has them, too; or None, never one without."""
    session = await s.session()
    await session.python("x = [1]")
    other = await s.fork(session)
    require(other is not None or s.backend.fork != "exact", "fork of a live Python gave None, and the backend says exact")
    if other is not None:
        same((await other.python("x.append(2); x")).text, "[1, 2]\n", "a name in the fork")
    same((await session.python("x")).text, "[1]\n", "the name in the session that was forked")


async def closing_may_be_repeated(s: Subject) -> None:
    """`close` may be called twice; every call of a closed session is a SandboxError."""
    session = await s.session()
    await session.close()
    await session.close()
    await is_lost(sh(session, "exit 0"), "a command in a closed session")
    await is_lost(session.python("1"), "Python in a closed session")
    await is_lost(session.read("x"), "reading in a closed session")
    await is_lost(session.write("x", b""), "writing in a closed session")
    await is_lost(session.list("/work"), "listing in a closed session")


async def closing_ends_what_runs(s: Subject) -> None:
    """`close` ends a call that runs, with a SandboxError; its neighbours do not notice."""
    session, neighbour = await s.session(), await s.session()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(_outcome(session))
        await asyncio.sleep(0.2)
        await session.close()
    require(isinstance(running.result(), SandboxError), f"a call in a session that was closed gave {running.result()!r}")
    await works(neighbour, "the close of another session")


async def _outcome(session: Session) -> Ran | SandboxError:
    try:
        return await session.exec(Command(GROWING.format("x"), timeout=30))
    except SandboxError as error:
        return error


async def a_network_by_list_is_that_list(s: Subject) -> None:
    """A list of hosts is kept, to and fro, or refused with a UserError that says what to do; nothing else is reached."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        try:
            session = await s.session(replace(s.limits, network=(f"localhost:{port}",)))
        except UserError as error:
            require(len(str(error)) > 20, f"a network was refused with {str(error)!r}, which tells nothing")
            return
        told = f"import socket; s = socket.create_connection(('localhost', {port}), 10); s.sendall(b'to\\n'); print(s.recv(9))"
        same((await session.python(told)).text, "b'TO\\n'\n", "what a host on the list said")
        for name, other in (("127.0.0.1", s.host.port), ("example.org", 80), ("192.0.2.1", 80)):
            code = f"import socket; socket.create_connection(('{name}', {other}), 2)"
            require(not (await session.python(code)).ok, f"a session with a list of hosts reached {name}:{other}")


LIFE_CHECKS = (
    the_backend_says_what_it_is, each_session_is_fresh, limits_of_its_own_are_kept, a_fork_is_exact_or_none,
    a_fork_of_live_python_is_exact_or_none, closing_may_be_repeated, closing_ends_what_runs,
    a_network_by_list_is_that_list,
)  # fmt: skip
