"""What the model sees next: everything, for as long as it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agentrl.rendering.contract import Conversation


class Context(Protocol):
    """Decides before each turn whether the conversation may go on as it is."""

    def fits(self, conversation: Conversation, added: int, reply: int, limit: int) -> bool:
        """Whether `added` more context tokens and a reply of at most `reply` tokens fit into `limit`."""
        ...


@dataclass(frozen=True, slots=True)
class Full:
    """Keeps the whole conversation; one that no longer fits ends as "context_overflow"."""

    def fits(self, conversation: Conversation, added: int, reply: int, limit: int) -> bool:
        return len(conversation.path) + added + min(reply, 1) <= limit
