"""One entry of an episode's journal.

Every way in which a workflow touches the world is an effect. Its key is (branch path, attempt, position): where in the
workflow it was asked for, never when. `issued` and `completed` are drawn from one counter of the episode, so that they
order all beginnings and ends; a replay hands results back in the order of `completed`.

A model call's effect *is* its `Turn`, stored once. An intent (`status="intent"`) says that something which outlives the
process was begun; it is committed before the thing itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from agentrl.episode import EMPTY_MAP, Turn

EffectKind: TypeAlias = Literal[
    "model",  # a Turn
    "tool",  # a tool call by a turn
    "effect",  # anything admitted by team.effect, and sandbox calls
    "score",  # log-probs of given tokens
    "timer",  # a deadline or sleep came due
    "thread",  # sync code handed to a thread came back (its order; the code runs again on replay)
    "inbound",  # a message from outside
    "cancel",  # the episode was cancelled from outside
    "deadline",  # the episode's deadline came
    "reward",  # a reward was given
    "note",  # anything the workflow recorded: state keys, stop reasons, metrics
]
EffectStatus: TypeAlias = Literal["ok", "error", "intent", "lost"]
"""`lost`: paid for but never handed to the workflow (a cancelled loser, a failed attempt). Replay passes over it."""


class EffectKey(NamedTuple):
    """Where in the workflow an effect was asked for."""

    branch: str
    attempt: int
    position: int

    def __str__(self) -> str:
        text = f"{self.branch}:{self.position}"
        return text if not self.attempt else f"{text}~{self.attempt}"


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """One entry of an episode's journal.

    `value` is what the effect gave, as JSON; for `status="error"` it is {"type", "message"}; for a model call `turn` holds
    everything and `value` is None. `blobs` are digests of large payloads that `value` refers to.
    """

    key: EffectKey
    kind: EffectKind
    name: str
    request: bytes
    """16-byte digest of what was asked; `note` is the same in short for people."""
    note: str
    issued: int
    completed: int
    """-1 for an intent."""
    at: float
    """Seconds since the episode began, by the clock that the workflow saw."""
    status: EffectStatus = "ok"
    value: Any = None
    turn: Turn | None = None
    blobs: tuple[str, ...] = ()
    costs: Mapping[str, float] = EMPTY_MAP


_as_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def digest_request(*parts: Any) -> bytes:
    """16 bytes over JSON-able values and byte strings, in order; equal requests have equal digests in every process."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else _as_json(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def derive_seed(*parts: str | int | bytes) -> int:
    """A 63-bit seed from what names the draw (run seed, episode, fork, branch, position ...), never from a counter."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little") >> 1
