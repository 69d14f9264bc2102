"""A container's network by list: a relay inside, run by another user than the code, and the host's end of its link.

The container itself has no network, so this works with any engine, a remote one too, and with gVisor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from agentrl.errors import SandboxError
from agentrl_sandboxes.docker.attach import Attached, start
from agentrl_sandboxes.network import MOST, Place, carry
from agentrl_sandboxes.relay import HEAD, OPENED, PIECE, Channel, Link

if TYPE_CHECKING:
    from aiodocker.containers import DockerContainer

log = logging.getLogger(__name__)
SOURCE = resources.files("agentrl_sandboxes").joinpath("relay.py").read_text("utf-8") + "\nmain()\n"
READY = HEAD.pack(OPENED, 0, 0)


async def relay(
    host: str, container: DockerContainer, name: str, allowed: Sequence[Place], *, python: str, user: str
) -> Attached:
    """Starts the relay of a running container; the stream to it, once it listens. `SandboxError` if it does not come up."""
    others = ":".join(str(int(number) + 1) for number in user.split(":"))  # whom the code can neither end nor look into
    listened = [f"{place.address}:{place.port}" for place in allowed]
    command = await container.exec([python, "-I", "-S", "-c", SOURCE, *listened], stdin=True, user=others)
    end = await start(host, command.id, name)
    try:
        found = b""
        while len(found) < len(READY):
            found += await asyncio.get_running_loop().sock_recv(end, len(READY) - len(found))
        if found != READY:
            raise SandboxError(f"the relay of container {name} does not keep to its protocol: {found!r}")
        return end
    except BaseException:
        end.close()
        raise


async def carry_all(end: Attached, name: str, allowed: Sequence[Place]) -> None:
    """Carries what connects to the relay until it is cancelled or the container is gone."""
    unsent = asyncio.Queue[bytes]()  # bounded by the windows of the connections
    loop = asyncio.get_running_loop()

    async def send() -> None:
        while True:
            await loop.sock_sendall(end, await unsent.get())

    async def receive() -> None:
        while True:
            link.hear(await loop.sock_recv(end, PIECE))

    def opened(channel: Channel, number: int) -> None:
        if len(link.channels) > MOST or number >= len(allowed):
            channel.abort()
        else:
            tasks.create_task(carry(channel, allowed[number]))

    link = Link(unsent.put_nowait, opened)
    with end:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                tasks.create_task(receive())
        except* OSError as gone:
            log.info("the relay of container %s is gone: %s", name, gone.exceptions[0])
        except* ValueError as broken:
            log.warning("the relay of container %s does not keep to its protocol: %s", name, broken.exceptions[0])
