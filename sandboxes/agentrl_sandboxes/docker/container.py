"""What a container may do, as the engine is told it: nothing but compute within its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.sandbox import SandboxLimits
from agentrl_sandboxes.docker.sent import START
from agentrl_sandboxes.network import names, places

if TYPE_CHECKING:
    from agentrl_sandboxes.docker.spec import Docker

PLACES = {"/work": 11, "/tmp": 4, "/dev/shm": 1}
"""The writable places and their sixteenths of `disk_mb`. They lie in memory, so the container's bound is memory and disk."""
SIXTEENTHS = 16
NOT_WRITABLE = {"/dev/mqueue": "ro,size=4k"}
"""The engine's own mount there could be written."""
GVISOR_MEMORY = 512 << 20
"""What gVisor itself holds, and what the code takes between two looks of process 1, which sees to the limits there."""
GVISOR_THREADS = 1024
"""The same of threads. Where it can have no more, gVisor falls: this bound stands behind that of process 1."""
RELAY = 2
"""Processes of a relay: its Python, and what starts it."""


def bound(limits: SandboxLimits) -> int:
    """Bytes of memory, with the files that lie in it."""
    return (limits.memory_mb + limits.disk_mb) << 20


def config(spec: Docker, limits: SandboxLimits, labels: dict[str, str], *, gvisor: bool) -> dict[str, Any]:
    """The body of a request to create one. It lives no longer than who is attached to it."""
    memory = bound(limits) + (GVISOR_MEMORY if gvisor else 0)
    allowed = places(limits.network)
    processes = limits.processes + (GVISOR_THREADS if gvisor else 1) + (RELAY if allowed else 0)  # process 1 is agentrl's
    return {
        "Image": spec.image,
        "Entrypoint": [spec.python, "-I", "-S", "-c", START],
        "Cmd": [],
        "User": "0:0" if gvisor else spec.user,
        "WorkingDir": "/work",
        "Hostname": "sandbox",
        "Labels": labels,
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": not allowed,  # without, the engine writes no /etc/hosts
        "OpenStdin": True,
        "StdinOnce": True,  # its end is the end of whoever was attached: process 1 hears that and goes
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "AutoRemove": True,
            "Runtime": spec.runtime,
            "NetworkMode": "none",
            "ExtraHosts": [f"{name}:{address}" for name, address in names(allowed).items()],
            "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0"} if allowed else {},
            "IpcMode": "private",
            "CapDrop": ["ALL"],
            "CapAdd": ["SETUID", "SETGID", "KILL"] if gvisor else [],  # of process 1, see `inside.GuardedRunner`
            "SecurityOpt": ["no-new-privileges"],  # and the engine's filter of system calls, to which process 1 adds its own
            "ReadonlyRootfs": True,
            "Tmpfs": {place: _tmpfs(limits, share, spec.user) for place, share in PLACES.items()} | NOT_WRITABLE,
            "Memory": memory,
            "MemorySwap": memory,  # both together: no swap
            "PidsLimit": processes,
            "NanoCpus": round(spec.cpus * 1e9),
            "OomScoreAdj": 0,
            "LogConfig": {"Type": "none", "Config": {}},
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        },
    }


def _tmpfs(limits: SandboxLimits, share: int, user: str) -> str:
    size = (limits.disk_mb << 10) * share // SIXTEENTHS
    owner, _, group = user.partition(":")
    files = max(64, limits.disk_mb * 256 * share // SIXTEENTHS)
    return f"rw,exec,nosuid,nodev,size={max(size, 64)}k,nr_inodes={files},mode=0755,uid={owner},gid={group or owner}"
