"""The spec `Docker`: what an experiment names."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import UserError
from agentrl.sandbox import Backend, SandboxLimits
from agentrl_sandboxes.tasks import background

if TYPE_CHECKING:
    from aiodocker import Docker as Client

SOCKET = "unix:///var/run/docker.sock"
ANSWERS = 10.0
"""Seconds in which an engine must say who it is."""


@dataclass(frozen=True)
class Docker:
    """Sandboxes in containers of a Docker engine. Any image with a Python 3.9 or newer serves; `make sandboxes` makes one."""

    image: str = "agentrl-sandbox"
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    runtime: str = ""
    """The engine's own (runc), or "runsc": gVisor, a kernel between the code and this machine's."""
    warm: int = 2
    """Containers that wait, started, to be used once."""
    cpus: float = 1.0
    user: str = "65534:65534"
    python: str = "python3"
    """The image's Python, by name or path."""
    host: str = ""
    """The engine's address, unix:///PATH or tcp://NAME:PORT; empty = DOCKER_HOST, else the usual socket."""

    def __post_init__(self) -> None:
        if self.warm < 0:
            raise UserError(f"Docker(warm=...) must be >= 0, got {self.warm}")
        if not self.cpus > 0:
            raise UserError(f"Docker(cpus=...) must be > 0, got {self.cpus}")
        if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", self.user):
            raise UserError(f'Docker(user=...) is "UID:GID", neither of them root\'s 0, got {self.user!r}')

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Backend]:
        """The backend, until the block ends. `UserError` without an engine, the image or the runtime, with what to do."""
        if importlib.util.find_spec("aiodocker") is None:
            raise UserError("Docker() sandboxes need aiodocker; pip install 'agentrl-runtime[docker]'")
        from aiodocker import Docker as Client

        from agentrl_sandboxes.docker.attach import checked
        from agentrl_sandboxes.docker.backend import DockerBackend
        from agentrl_sandboxes.docker.owner import labels, reap

        host = checked(self.host or os.environ.get("DOCKER_HOST") or SOCKET)
        async with Client(url=host) as client:
            env, gvisor = await self._found(client, host)
            async with background() as tasks:
                backend = DockerBackend(client, self, host=host, gvisor=gvisor, env=env, labels=labels(), tasks=tasks)
                try:
                    await reap(client, backend.remove)
                    await backend.probe()
                    yield backend
                finally:
                    await backend.close()

    async def _found(self, client: Client, host: str) -> tuple[dict[str, str], bool]:
        """The environment that commands find, and whether gVisor runs them."""
        from aiodocker import DockerError
        from aiohttp import ClientError

        try:
            async with asyncio.timeout(ANSWERS):
                engine = await client.system.info()
        except (ClientError, OSError, DockerError) as error:
            raise UserError(
                f"no Docker engine answers at {host} ({error or type(error).__name__}); start one (`make sandboxes`), "
                "or name it by DOCKER_HOST or Docker(host=...)"
            ) from error
        if self.runtime and self.runtime not in engine["Runtimes"]:
            has = ", ".join(sorted(name for name in engine["Runtimes"] if "." not in name))
            raise UserError(
                f"the Docker engine has no runtime {self.runtime!r}, only {has}; install it and name it in the engine's "
                'daemon.json under "runtimes", as `make sandboxes` does'
            )
        if not (engine["MemoryLimit"] and engine["PidsLimit"]):
            raise UserError("the Docker engine cannot bound memory and processes; give it the memory and pids cgroups")
        try:
            image = await client.images.inspect(self.image)
        except DockerError as error:
            raise UserError(
                f"the Docker engine has no image {self.image!r} ({error.message}); `docker pull` or build it, or "
                "`make sandboxes` for agentrl-sandbox"
            ) from error
        runtime = engine["Runtimes"][self.runtime or engine["DefaultRuntime"]]
        return environment(image), Path(runtime.get("path") or "").name.startswith("runsc")


def environment(image: dict[str, Any]) -> dict[str, str]:
    """What commands find in their environment: the image's, and the sandbox's HOME and LANG."""
    own = dict(line.split("=", 1) for line in image["Config"].get("Env") or [] if "=" in line)
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **own, "HOME": "/work", "LANG": "C.UTF-8"}
