"""agentrl: an asyncio runtime for LLM agents, and the reinforcement learning that trains them."""

from __future__ import annotations

from agentrl.agent import Agent, Reply
from agentrl.episode import Episode, Group, Reward, Turn
from agentrl.errors import AgentRLError, UserError
from agentrl.evaluate import evaluate
from agentrl.experiment import Experiment, Policy
from agentrl.limits import Limits
from agentrl.rendering.contract import Message
from agentrl.runtime.runtime import Runtime
from agentrl.tasks import read_tasks
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
    "read_tasks",
    "tool",
    "train",
    "workflow",
]
