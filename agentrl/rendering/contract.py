"""What a renderer is: messages to tokens and back, once and incrementally.

Sampled tokens are never decoded and encoded again. A `Conversation` is an append-only list of what one context holds:
messages that were rendered, and turns as the ids that were sampled. `Renderer.extend` gives only the ids that are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from agentrl.episode import EMPTY_MAP, IntArray, Segment

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool call as the model wrote it. `error` says why it could not be read; then `arguments` is empty."""

    name: str
    arguments: Mapping[str, Any]
    call_id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    name: str = ""
    """For a tool's reply: the tool."""
    call_id: str = ""
    tool_calls: tuple[ToolRequest, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it; `parameters` is JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates take."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """The ids to add before the next sample.

    Of the path so far the first `kept` tokens stay (all of it, unless `faithful` broke it); then `ids` follow. `broken`
    tells that a faithful rendering differs from what was sampled, and how ("template", "retokenised", "truncated").
    `deviation` counts the tokens by which the append-only path differs from what the template alone would give
    (kept thinking, mostly); -1 = not measured.
    """

    kept: int
    ids: IntArray
    segments: tuple[Segment, ...]
    broken: str = ""
    deviation: int = -1


@dataclass(frozen=True, slots=True)
class Parsed:
    """A sampled output, read. `text` is what the model says to the user, without thinking, calls and stop tokens."""

    text: str
    raw: str
    reasoning: str = ""
    tool_calls: tuple[ToolRequest, ...] = ()
    error: str = ""
    """Why the output does not follow the format; empty = it does."""


@dataclass(slots=True)
class Conversation:
    """One context of one agent: its messages, and the ids of its path so far (context and sampled)."""

    messages: list[Message] = field(default_factory=list[Message])
    tools: tuple[ToolSpec, ...] = ()
    path: list[int] = field(default_factory=list[int])
    rendered: int = 0
    """How many of `messages` are already in `path`."""
    template_args: Mapping[str, Any] = EMPTY_MAP


class Renderer(Protocol):
    """Messages <-> tokens for one tokenizer and chat template. Stateless; conversations hold all state."""

    @property
    def tokenizer_id(self) -> str:
        """Digest of the tokenizer's own file."""
        ...

    @property
    def template_id(self) -> str:
        """Digest of the chat template and of how this renderer uses it."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn."""
        ...

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), **template_args: Any) -> Conversation: ...

    def extend(self, conversation: Conversation) -> Rendered:
        """Renders the messages that are not yet in the path, and the generation prompt; moves the path on."""
        ...

    def sampled(self, conversation: Conversation, ids: IntArray) -> Parsed:
        """Takes a sampled turn into the path as it is, and reads it."""
        ...

    def decode(self, ids: IntArray) -> str: ...

    def encode(self, text: str) -> IntArray:
        """Plain text to ids, no template, special tokens recognised."""
        ...
