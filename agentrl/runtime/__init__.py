"""The runtime: journal, scheduler, limits, fork."""

from agentrl.runtime.runtime import Runtime

__all__ = ["Runtime"]
