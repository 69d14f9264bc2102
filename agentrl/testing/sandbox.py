"""The conformance suite of sandboxes: `await check_sandbox(lambda: MySandbox(...))`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from agentrl.errors import AgentRLError, SandboxError, boundary
from agentrl.sandbox import SandboxLimits, SandboxSpec
from agentrl.testing.claims import Broken, Nonconforming, refuse_unknown
from agentrl.testing.sandbox_calls import CALL_CHECKS
from agentrl.testing.sandbox_files import FILE_CHECKS
from agentrl.testing.sandbox_isolation import ISOLATION_CHECKS
from agentrl.testing.sandbox_limits import LIMIT_CHECKS
from agentrl.testing.sandbox_lives import LIFE_CHECKS
from agentrl.testing.sandbox_subject import Subject, a_host

CHECKS = {check.__name__: check for check in (*CALL_CHECKS, *FILE_CHECKS, *LIFE_CHECKS, *LIMIT_CHECKS, *ISOLATION_CHECKS)}
SMALL = SandboxLimits(memory_mb=128, processes=24, cpu_seconds=1, open_files=64, disk_mb=8, output=1 << 16, timeout=20.0)
"""What is given to the sessions whose limits are reached."""


class SandboxNonconforming(Nonconforming):
    """Every claim of the contract that the sandbox broke."""

    contract = "sandbox"


async def check_sandbox(
    make: Callable[[], SandboxSpec],
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    small: SandboxLimits = SMALL,
    patience_s: float = 60.0,
) -> tuple[str, ...]:
    """Holds one spec to the contract and gives the names of the checks that it passed, or did not have to.

    All checks share one backend, and each opens sessions of its own in it; those that reach a limit ask for `small`. The
    sandbox needs a `python3`, `sh` and the usual small programs. What stands for the host (a file, servers, a process with a
    secret in its environment) is made for it and goes with it. Each check must end within `patience_s`. Raises
    `SandboxNonconforming` with all broken claims.
    """
    refuse_unknown("sandbox", (*only, *skip), CHECKS)
    broken: list[Broken] = []
    held: list[str] = []
    spec = make()
    with a_host() as host:
        async with spec.open() as backend:
            for name, check in CHECKS.items():
                if name in skip or (only and name not in only):
                    continue
                try:
                    async with asyncio.timeout(patience_s), Subject(backend, spec.limits, small, host) as subject:
                        with boundary(SandboxError, "raised"):
                            await check(subject)
                    held.append(name)
                except (AgentRLError, TimeoutError) as error:
                    broken.append(Broken.by(check, error, patience_s))
    if broken:
        raise SandboxNonconforming(type(spec).__name__, broken, len(held))
    return tuple(held)
