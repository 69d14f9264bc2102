"""Turns and episodes for tests of what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentrl.episode import Episode, Parent, Sampling, ToolCall, Turn, Version, VersionSpan, token_ids
from agentrl.view.credit import Trained, TurnCredit


def turn(id: str, agent: str, index: int, text: str, parent: str | None = None, **more: Any) -> Turn:
    sampled = token_ids(more.pop("ids", [7, 8, 9]))
    given: dict[str, Any] = {
        "policy": "p",
        "versions": (VersionSpan(Version("run", "p", 12, "ab"), 0, len(sampled)),),
        "parent": Parent(parent, 5) if parent is not None else None,
        "predecessor": None,
        "branch": "",
        "context_ids": token_ids([1, 2]),
        "sampled_ids": sampled,
        "logprobs": np.linspace(-0.5, -4, len(sampled), dtype=np.float32),
        "logprobs_at": "after_mask",
        "finish": "stop",
        "sampling": Sampling(),
        "seed": 1,
        "started": 1.0,
        "ended": 1.5,
    }
    return Turn(id=id, agent=agent, index=index, text=text, **(given | more))


def call(**more: Any) -> ToolCall:
    given: dict[str, Any] = {"name": "search", "arguments": {"query": "capital of Peru"}, "status": "ok", "output": "Lima"}
    return ToolCall(**(given | {"started": 2.0, "ended": 2.25} | more))


def episode(turns: Sequence[Turn] = (), **more: Any) -> Episode:
    given: dict[str, Any] = {
        "id": "g7.0",
        "group": "g7",
        "task": {"text": "Which city?"},
        "seed": 5,
        "workflow": "ab",
        "source": "policy",
        "status": "done",
        "turns": tuple(turns),
        "seconds": 3.5,
    }
    return Episode(**(given | more))


def credit(turn: Turn, *advantages: float | Sequence[float]) -> TurnCredit:
    """As if the turn had been trained in a row for each of `advantages`."""
    full = [np.broadcast_to(np.float32(value), len(turn.sampled_ids)) for value in advantages]
    return TurnCredit(turn, tuple(Trained(3, turn.id, np.asarray(value, np.float32), 1.0) for value in full))
