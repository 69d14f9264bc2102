"""The record: Turn, Episode, Group. Frozen, slotted, no I/O.

A turn is one sampled model output and all that is known of it; an episode is one run of a workflow on one task, a tree of
turns over all its agents; a group is the episodes of one task that are compared. Storage is linear in tokens: a turn holds
the ids added since its parent and the ids sampled, never a copy of its prompt. Summaries, branches, several agents,
candidates and forks are shapes of one tree. `docs/record.md` says which field serves which method.

Shape suffix: `_C` over the context tokens a turn adds, `_S` over its sampled tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from agentrl.errors import Fault

if TYPE_CHECKING:
    import numpy.typing as npt

IntArray: TypeAlias = "npt.NDArray[np.int32]"
FloatArray: TypeAlias = "npt.NDArray[np.float32]"
JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

Finish: TypeAlias = Literal["stop", "length", "abort", "error"]
"""Why sampling ended: a stop token or string, the token limit, an abort from outside, or a failed engine."""

StopReason: TypeAlias = Literal[
    "answered", "turn_limit", "token_limit", "context_overflow", "tool_limit", "deadline", "parse_error",
    "no_progress", "cancelled", "engine_failure", "tool_failure",
]  # fmt: skip
"""Why an agent's model-tool loop ended."""

Source: TypeAlias = Literal["policy", "reference", "monte-carlo", "replay", "demonstration", "teacher", "simulator"]
Status: TypeAlias = Literal["running", "done", "overlong", "stopped", "failed", "cancelled", "over_budget", "divergent"]
ToolStatus: TypeAlias = Literal["ok", "error", "timeout", "cancelled", "unknown_tool", "bad_arguments"]

FINISHED: tuple[Status, ...] = ("done", "overlong", "stopped")
"""Ends that may be compared; an episode with another status is lost. One that its rollout plan "stopped" had given what the
plan wanted of it, such as the reward of one turn; it has no outcome."""

EMPTY_IDS: IntArray = np.zeros(0, np.int32)
EMPTY_LOGPROBS: FloatArray = np.zeros(0, np.float32)


class _NoEntries(Mapping[str, Any]):
    """An empty mapping that may stand as a dataclass default, for it cannot change."""

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "{}"


EMPTY_MAP: Mapping[str, Any] = _NoEntries()


def token_ids(ids: Sequence[int] | npt.NDArray[Any]) -> IntArray:
    """The ids as a read-only int32 array."""
    array = np.array(ids, dtype=np.int32)
    array.flags.writeable = False
    return array


def digest_ids(*parts: IntArray) -> bytes:
    """16 bytes that identify a sequence of token ids, however it is cut into parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(np.ascontiguousarray(part, dtype="<i4").tobytes())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Version:
    """Which weights: the run they descend from, the policy or adapter, its learner step, a digest of the tensors."""

    lineage: str
    policy: str
    step: int
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.lineage}/{self.policy}@{self.step}#{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """The inverse of `str`."""
        head, _, digest = text.rpartition("#")
        names, _, step = head.rpartition("@")
        lineage, _, policy = names.rpartition("/")
        return cls(lineage, policy, int(step), digest)


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Sampled tokens [start, end) were drawn from `version`; `kv` says whether the KV before them was kept or recomputed."""

    version: Version
    start: int
    end: int
    kv: Literal["kept", "recomputed"] = "kept"


@dataclass(frozen=True, slots=True)
class Parent:
    """The turn this one goes on from, and how many tokens of that turn's whole path (context and sampled) it keeps."""

    turn: str
    kept: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) of a turn's `context_ids` render one message (or the generation prompt)."""

    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy; `top_k=0` and `top_p=1` are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 256
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by a turn: what was asked, what came of it, and when (seconds since the episode began)."""

    name: str
    arguments: Mapping[str, Any]
    status: ToolStatus
    output: str
    started: float
    ended: float
    attempts: int = 1
    truncated: bool = False
    call_id: str = ""
    data: Mapping[str, Any] = EMPTY_MAP
    """What the tool reports beside its text, such as the ids of the documents it gave."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Candidates are sibling turns of one set; one is chosen."""

    set: str
    index: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class State:
    """Canonical keys of the environment's state before and after the turn, and of its action; empty = unknown."""

    before: str = ""
    after: str = ""
    action: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Reward:
    """A number with a name. `turn=None` is the end of the episode, `agent=None` the whole team."""

    name: str
    value: float
    turn: str | None = None
    agent: str | None = None
    after: str | None = None
    """Of one that was given to no turn: the last turn that had been sampled then; None = unknown, or given behind the end."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A declared, named extra measurement at a turn: what was scored, where, and by which weights."""

    name: str
    position: int
    ids: IntArray
    logprobs: FloatArray
    version: Version | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A further per-token value (entropy, value, reference log-prob, kept set ...), typed, over sampled or context tokens."""

    name: str
    values: npt.NDArray[Any]
    at: Literal["sampled", "context"] = "sampled"


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One sampled model output. Times are seconds since the episode began.

    `id` is the key of the journal's effect that sampled it, unique in the episode. The ids of a turn of an engine
    without token ids are the bytes of its messages, and it is `untrained`.
    """

    id: str
    agent: str
    index: int
    """0-based turn of this agent in the episode."""
    policy: str
    versions: tuple[VersionSpan, ...]
    parent: Parent | None
    predecessor: str | None
    branch: str
    context_ids: IntArray
    sampled_ids: IntArray
    logprobs: FloatArray
    """Behaviour log-prob of each sampled token, float32, nan where the engine gave none."""
    logprobs_at: Literal["before_mask", "after_mask"]
    finish: Finish
    sampling: Sampling
    seed: int
    text: str
    digest: bytes = b""
    """`digest_ids` of the whole path as the engine saw it, prompt and sampled."""
    kind: Literal["act", "summary"] = "act"
    forced: int = 0
    """The first `forced` sampled tokens were given, not drawn; they are never trained."""
    segments: tuple[Segment, ...] = ()
    tokenizer: str = ""
    template: str = ""
    candidate: Candidate | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    observation: str | None = None
    state: State | None = None
    rewards: tuple[Reward, ...] = ()
    probes: tuple[Probe, ...] = ()
    columns: Mapping[str, Column] = EMPTY_MAP
    media: tuple[str, ...] = ()
    """Digests of blobs, in the order in which the context refers to them."""
    valid: bool = True
    """False when the output could not be parsed as the agent's format asks."""
    started: float = 0.0
    ended: float = 0.0
    cached_tokens: int = 0
    costs: Mapping[str, float] = EMPTY_MAP
    untrained: str = ""
    """Why this turn is never trained; empty = it may be."""

    @property
    def trainable(self) -> bool:
        """Whether there is at least one drawn token with ids that may be trained."""
        return not self.untrained and len(self.sampled_ids) > self.forced


@dataclass(frozen=True, slots=True)
class Ledger:
    """Everything paid for one episode, losers, probes and failed attempts included."""

    sampled_tokens: int = 0
    """Tokens of the turns that stand in the episode."""
    lost_tokens: int = 0
    """Tokens sampled for attempts and branches that were cancelled or failed."""
    probe_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tool_calls: int = 0
    model_calls: int = 0
    costs: Mapping[str, float] = EMPTY_MAP


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an episode has no usable end, and whose fault it is."""

    fault: Fault
    message: str


@dataclass(frozen=True)
class Episode:
    """One run of a workflow on one task."""

    id: str
    group: str
    task: Any
    seed: int
    workflow: str
    """Hash of the workflow's code."""
    source: Source
    status: Status
    turns: tuple[Turn, ...]
    """In the order in which they were issued."""
    output: Any = None
    rewards: tuple[Reward, ...] = ()
    """Those that belong to no turn."""
    metrics: Mapping[str, float] = EMPTY_MAP
    ledger: Ledger = field(default_factory=Ledger)
    failure: Failure | None = None
    stops: tuple[tuple[str, StopReason], ...] = ()
    """(agent, stop reason) of every model-tool loop, in the order in which they ended."""
    fork_of: str | None = None
    fork_cut: int = 0
    seconds: float = 0.0

    @cached_property
    def by_id(self) -> Mapping[str, Turn]:
        """The turns by id."""
        return {turn.id: turn for turn in self.turns}

    @property
    def reward(self) -> float:
        """Sum of the episode's own rewards at its end, for the whole team (turn rewards and agents' own stay apart)."""
        return float(sum(reward.value for reward in self.rewards if reward.agent is None))

    def path(self, turn: Turn) -> IntArray:
        """All ids the model saw and gave up to the end of `turn`: its parent's kept path, its context, its sample."""
        parts: list[IntArray] = [turn.sampled_ids, turn.context_ids]
        at = turn
        kept = None
        while at.parent is not None:
            kept = at.parent.kept
            at = self.by_id[at.parent.turn]
            ancestors = self.path(at) if kept < self.path_length(at) else None
            if ancestors is not None:
                parts.append(ancestors[:kept])
                break
            parts.extend((at.sampled_ids, at.context_ids))
        return np.concatenate(parts[::-1]) if len(parts) > 1 else parts[0]

    def path_length(self, turn: Turn) -> int:
        """Number of tokens of `path(turn)`, without building it."""
        kept = turn.parent.kept if turn.parent is not None else 0
        return kept + len(turn.context_ids) + len(turn.sampled_ids)

    def leaves(self) -> Iterator[Turn]:
        """The turns that no other turn goes on from."""
        inner = {turn.parent.turn for turn in self.turns if turn.parent is not None}
        return (turn for turn in self.turns if turn.id not in inner)


@dataclass(frozen=True)
class Group:
    """The episodes of one task that are compared. `wanted` may exceed their number: members can be lost. A plan whose groups
    differ in size wants 1."""

    id: str
    task: Any
    episodes: tuple[Episode, ...]
    wanted: int

    @property
    def finished(self) -> tuple[Episode, ...]:
        """The members that ended in a way that may be compared; the rest are lost, never reward 0."""
        return tuple(episode for episode in self.episodes if episode.status in FINISHED)
