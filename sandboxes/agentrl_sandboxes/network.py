"""A network by list: the hosts that a sandbox may connect to, and the carrying of its connections to them.

A sandbox's own network leads nowhere. There each allowed name has an address (by /etc/hosts) where the allowed ports alone are
listened on; what connects is carried, as bytes, by this process to that name and port as they are known here. Code in the
sandbox can name nothing else: it chooses among listeners. There are no other names, no datagrams and no connections in.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Protocol

from agentrl.sandbox import Network, SandboxLimits
from agentrl_sandboxes.relay import End, Tcp

log = logging.getLogger(__name__)
CONNECTING = 10.0
"""Seconds that a host may take to answer."""
MOST = 64
"""Connections of one sandbox at once; more are closed as they come."""
LOCAL = ("localhost", "127.0.0.1")
_unreachable: set[Place] = set()
"""Places that did not answer, and of which a warning was given."""


class Place(NamedTuple):
    """What may be connected to, and where a sandbox finds it."""

    name: str
    port: int
    address: str


class Inner(End, Protocol):
    """The sandbox's end of a connection that waits to be carried on."""

    def go(self, peer: Tcp, /) -> None: ...


def places(network: Network) -> tuple[Place, ...]:
    """Each name with an address of its own in 127.1.0.0/16; this machine's own loopback is where it always is."""
    found: list[Place] = []
    addresses: dict[str, str] = dict.fromkeys(LOCAL, "127.0.0.1")
    for host in () if network == "none" else network:
        name, _, port = host.rpartition(":")
        number = len(addresses) - len(LOCAL) + 1
        found.append(Place(name, int(port), addresses.setdefault(name, f"127.1.{number >> 8}.{number & 255}")))
    return tuple(found)


def network(limits: SandboxLimits) -> str:
    """In a line, for people."""
    return "no network" if limits.network == "none" else f"a network of {', '.join(limits.network)} alone"


def names(allowed: Sequence[Place]) -> dict[str, str]:
    """By name, its address in the sandbox: the lines of /etc/hosts beside localhost's."""
    return {place.name: place.address for place in allowed if place.name not in LOCAL}


async def carry(inner: Inner, place: Place) -> None:
    """Carries one connection until it ends; cancelled, it ends it. Of a host that does not answer it is reset."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECTING):
            _, outer = await loop.create_connection(partial(Tcp, lambda _: inner), place.name, place.port)
    except OSError as error:  # TimeoutError among them
        level = logging.DEBUG if place in _unreachable else logging.WARNING  # once: code may try without end
        _unreachable.add(place)
        log.log(level, "a sandbox asked for %s:%d, which did not answer: %s", place.name, place.port, error or "too late")
        inner.abort()
        return
    except asyncio.CancelledError:
        inner.abort()
        raise
    try:
        inner.go(outer)
        outer.go()
        await outer.closed
    finally:
        outer.abort()
        inner.abort()


async def serve(listeners: Sequence[socket.socket], allowed: Sequence[Place]) -> None:
    """Carries what connects to a sandbox's listeners, one for each place, until it is cancelled."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        live: set[asyncio.Task[None]] = set()

        def accepted(place: Place, inner: Tcp) -> None:
            if len(live) >= MOST:
                inner.abort()
            else:
                task = tasks.create_task(carry(inner, place))
                live.add(task)
                task.add_done_callback(live.discard)

        with ExitStack() as stack:
            for listener, place in zip(listeners, allowed, strict=True):
                server = await loop.create_server(partial(Tcp, partial(accepted, place)), sock=listener)
                stack.callback(server.close)
            await loop.create_future()
