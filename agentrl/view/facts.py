"""What is known of an episode, in words: the same in the terminal and on a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrl.episode import Episode, Probe, Reward, ToolCall, Turn


def version(turn: Turn) -> str:
    """The policy and the learner steps whose weights sampled the turn."""
    steps = list(dict.fromkeys(span.version.step for span in turn.versions))
    return f"{turn.policy}@{'→'.join(map(str, steps))}" if steps else turn.policy


def size(turn: Turn) -> str:
    """Tokens added and sampled."""
    return f"{len(turn.context_ids)}+{len(turn.sampled_ids)} tokens"


def marks(turn: Turn) -> Iterator[str]:
    """What sets the turn apart from a plain one."""
    if turn.kind != "act":
        yield turn.kind
    if turn.candidate is not None:
        chosen = "chosen" if turn.candidate.chosen else "not chosen"
        yield f"candidate {turn.candidate.index} of {turn.candidate.set}, {chosen}"
    if turn.forced:
        yield f"first {turn.forced} tokens forced"
    if not turn.valid:
        yield "invalid format"
    if turn.untrained:
        yield f"not trained: {turn.untrained}"


def asked(call: ToolCall) -> str:
    """A tool call as Python would write it."""
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def took(call: ToolCall) -> str:
    """A tool call's status, seconds and attempts, and whether a person changed its result."""
    tried = f"  {call.attempts} attempts" if call.attempts > 1 else ""
    by_hand = "  edited by hand" if "edited by hand" in call.data else ""
    return f"{call.status}  {call.ended - call.started:.2f} s{tried}{by_hand}"


def got(call: ToolCall) -> str:
    """A tool call's output."""
    return call.output + (" (cut)" if call.truncated else "")


def reward(given: Reward) -> str:
    """A reward by name, and whose it is."""
    return f"reward {given.name} = {given.value:.4g}" + (f" for {given.agent}" if given.agent is not None else "")


def probe(given: Probe) -> str:
    """What was scored beside the turn."""
    value = f" = {given.value:.4g}" if given.value is not None else ""
    return f"probe {given.name} at {given.position}, {len(given.ids)} tokens{value}"


def stops(episode: Episode) -> str:
    """Why each agent's loop ended."""
    return ", ".join(f"{agent}: {reason}" for agent, reason in episode.stops)


def ledger(episode: Episode) -> str:
    """Everything paid."""
    paid = episode.ledger
    parts = [f"{paid.sampled_tokens} tokens sampled", f"{paid.prompt_tokens} of prompts ({paid.cached_tokens} cached)"]
    parts += [f"{paid.lost_tokens} lost"] if paid.lost_tokens else []
    parts += [f"{paid.probe_tokens} probed"] if paid.probe_tokens else []
    parts += [f"{paid.model_calls} model calls", f"{paid.tool_calls} tool calls"]
    return ", ".join(parts) + (f", {numbers(paid.costs)}" if paid.costs else "")


def numbers(values: Mapping[str, float]) -> str:
    """Numbers by name."""
    return ", ".join(f"{name} = {value:.4g}" for name, value in values.items())


def as_text(value: Any) -> str:
    """A task or an output; JSON where it can be."""
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping | Sequence) or value is None or isinstance(value, bool | int | float):
        return json.dumps(value, ensure_ascii=False, default=repr)
    return repr(value)
