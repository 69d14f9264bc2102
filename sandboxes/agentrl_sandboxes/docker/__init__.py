"""Sandboxes in containers of a Docker engine, kept warm in a pool; with gVisor (`runtime="runsc"`) for hostile code.

Experiment(..., sandbox=Docker(image="agentrl-sandbox", limits=SandboxLimits(memory_mb=256)))
"""

from __future__ import annotations

from agentrl_sandboxes.docker.spec import Docker

__all__ = ["Docker"]
