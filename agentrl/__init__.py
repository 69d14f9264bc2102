"""agentrl: an asyncio runtime for LLM agents, and the reinforcement learning that trains them.

Names are loaded when they are first used, so that `import agentrl` and `agentrl --help` cost next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentrl.agent import Agent, Reply
    from agentrl.episode import Episode, Group, Reward, Turn
    from agentrl.errors import AgentRLError, UserError
    from agentrl.evaluate import evaluate
    from agentrl.experiment import Experiment, Policy
    from agentrl.limits import Limits
    from agentrl.rendering.contract import Message
    from agentrl.runtime.runtime import Runtime
    from agentrl.tasks import from_store, read_tasks
    from agentrl.team import Team
    from agentrl.tool import Tool, ToolOutput, tool
    from agentrl.train import train
    from agentrl.workflow import Workflow, workflow

__all__ = [
    "Agent",
    "AgentRLError",
    "Episode",
    "Experiment",
    "Group",
    "Limits",
    "Message",
    "Policy",
    "Reply",
    "Reward",
    "Runtime",
    "Team",
    "Tool",
    "ToolOutput",
    "Turn",
    "UserError",
    "Workflow",
    "evaluate",
    "from_store",
    "read_tasks",
    "tool",
    "train",
    "workflow",
]

_HOMES = {
    "agentrl.agent": ("Agent", "Reply"),
    "agentrl.episode": ("Episode", "Group", "Reward", "Turn"),
    "agentrl.errors": ("AgentRLError", "UserError"),
    "agentrl.evaluate": ("evaluate",),
    "agentrl.experiment": ("Experiment", "Policy"),
    "agentrl.limits": ("Limits",),
    "agentrl.rendering.contract": ("Message",),
    "agentrl.runtime.runtime": ("Runtime",),
    "agentrl.tasks": ("from_store", "read_tasks"),
    "agentrl.team": ("Team",),
    "agentrl.tool": ("Tool", "ToolOutput", "tool"),
    "agentrl.train": ("train",),
    "agentrl.workflow": ("Workflow", "workflow"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name from its home."""
    if name not in _HOME:
        raise AttributeError(f"module 'agentrl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`agentrl.train` is the function, also after its module of the same name was imported (which sets that attribute)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
