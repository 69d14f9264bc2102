"""Strategies for what the model sees next."""

from agentrl.context.full import Context, Full

__all__ = ["Context", "Full"]
