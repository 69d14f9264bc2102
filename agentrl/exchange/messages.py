"""An episode as chat messages, for tools that fine-tune on these.

A context is tokens, and its messages are read off them: the segments of each role, decoded without special tokens and
without the name of the role that templates write first. A tool's reply is what the tool gave. What the assistant wrote goes
without its calls, which stand in `tool_calls` as they were understood; where no parser can part the two, with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from agentrl.episode import Episode, IntArray, Turn
from agentrl.exchange.row import Entry

Message = dict[str, Any]
Decode: TypeAlias = Callable[[Turn, IntArray], str]
"""The text of some of a turn's ids, without special tokens."""
Spoken: TypeAlias = Callable[[Turn, str], str]
"""What a turn's text says besides its tool calls."""


def with_messages(entries: Iterable[Entry], decode: Decode, spoken: Spoken) -> Iterator[Entry]:
    """The entries with `messages`."""
    for entry in entries:
        yield replace(entry, messages=tuple(messages_of(entry.episode, decode, spoken)))


def messages_of(episode: Episode, decode: Decode, spoken: Spoken) -> list[Message]:
    """The conversation that ends in the episode's last turn, from its root; other contexts and branches are not in it."""
    if not episode.turns:
        return []
    path = [episode.turns[-1]]
    while (parent := path[0].parent) is not None:
        path.insert(0, episode.by_id[parent.turn])
    messages: list[Message] = []
    before: Turn | None = None
    for turn in path:
        messages += _given(turn, before, decode)
        messages.append(_said(turn, decode, spoken))
        before = turn
    return messages


def _given(turn: Turn, before: Turn | None, decode: Decode) -> Iterator[Message]:
    """What a turn was given: replies of the tools that the turn before called, and whatever else its context holds."""
    replies = iter(before.tool_calls if before is not None else ())
    for segment in turn.segments:
        if segment.role == "generation":
            continue
        text = _without_role(decode(turn, turn.context_ids[segment.start : segment.end]), segment.role)
        call = next(replies, None) if segment.role == "tool" else None
        if call is not None:
            yield {"role": "tool", "content": call.output, "name": call.name, "tool_call_id": call.call_id}
        elif text:
            yield {"role": segment.role, "content": text}


def _said(turn: Turn, decode: Decode, spoken: Spoken) -> Message:
    text = decode(turn, turn.sampled_ids) if len(turn.sampled_ids) else turn.text
    if not turn.tool_calls:
        return {"role": "assistant", "content": text}
    calls = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in turn.tool_calls
    ]
    return {"role": "assistant", "content": spoken(turn, text), "tool_calls": calls}


def _without_role(text: str, role: str) -> str:
    """Templates that have no token for a role write its name and a line end."""
    text = text.strip()
    for name in (role, "user", "tool", "ipython"):
        if text.startswith(f"{name}\n"):
            return text[len(name) :].strip()
    return text
