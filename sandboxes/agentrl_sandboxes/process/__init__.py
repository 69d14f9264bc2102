"""Sandboxes on this machine, without a daemon: bubblewrap around one small process, kept warm in a pool.

    Experiment(..., sandbox=Process(limits=SandboxLimits(memory_mb=256)))

The launcher imports its parts from here and shall stay small: names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl_sandboxes.process.spec import Process

__all__ = ["Process"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from agentrl_sandboxes.process import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
