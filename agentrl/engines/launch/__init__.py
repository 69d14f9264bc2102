"""Engine servers as child processes: their commands, their start, and their end whatever happens to us."""

from agentrl.engines.launch.commands import sglang_command, vllm_command
from agentrl.engines.launch.server import Command, Server, Servers, free_port

__all__ = ["Command", "Server", "Servers", "free_port", "sglang_command", "vllm_command"]
