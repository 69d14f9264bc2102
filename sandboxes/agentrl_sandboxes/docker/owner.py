"""Whose a container is: the host process that opened it, and the reaper of those whose owner is gone."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiodocker import Docker as Client

log = logging.getLogger(__name__)
OWNER, RUN, PID = "agentrl.owner", "agentrl.run", "agentrl.pid"


def labels() -> dict[str, str]:
    """This process's, with a new run id. A process id alone would be another's one day, and on another machine at once."""
    return {OWNER: f"{_machine()} {os.getpid()} {_began(os.getpid())}", RUN: secrets.token_hex(4), PID: str(os.getpid())}


def orphaned(owner: str) -> bool:
    """Whether the process is gone. One of another machine, or of another boot, is not known to be."""
    machine, _, process = owner.partition(" ")
    pid, _, began = process.partition(" ")
    return machine == _machine() and pid.isdigit() and _began(int(pid)) != began


async def reap(client: Client, remove: Callable[[str], Awaitable[None]]) -> int:
    """Removes the containers of processes that are gone; how many."""
    found = await client.containers.list(all="true", filters=json.dumps({"label": [OWNER]}))
    names = [container["Id"] for container in found if orphaned(container["Labels"][OWNER])]
    for name in names:
        await remove(name)
    if names:
        log.warning("%d sandboxes of runs that were killed were left, and are removed", len(names))
    return len(names)


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip() if boot.exists() else os.uname().nodename}:{os.stat('/proc/self/ns/pid').st_ino}"


def _began(pid: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none, or only what waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
