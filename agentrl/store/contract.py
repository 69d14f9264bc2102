"""What a store is: the durable home of episodes and their journals, of learner steps and blobs.

Append-only. One writer owns an episode, by lease. `append` queues and returns at once; what was queued is committed in
order, in groups; `flush` returns when everything queued so far is durable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentrl.effect import Effect
from agentrl.episode import EMPTY_MAP, Episode, Failure, Ledger, Reward, Source, Status, StopReason, Version


@dataclass(frozen=True, slots=True)
class EpisodeHead:
    """What is known of an episode when it begins. `task` is JSON; `wanted` is the size of its group."""

    id: str
    group: str
    member: int
    wanted: int
    task: Any
    seed: int
    workflow: str
    source: Source = "policy"
    split: str = "train"
    """Which stream of work it belongs to: "train", "eval", "serve" ..."""
    step: int = 0
    """The learner step (batch index) it was sampled for."""
    fork_of: str | None = None
    fork_cut: int = 0
    """A fork's journal begins with its parent's effects whose `completed` is below this."""
    fork_forced: Mapping[str, tuple[int, ...]] = EMPTY_MAP
    """Effect key -> token ids forced on the first live model call with that key."""
    created: float = 0.0
    """Unix time."""


@dataclass(frozen=True, slots=True)
class EpisodeTail:
    """What is known of an episode when it has ended."""

    status: Status
    output: Any = None
    rewards: tuple[Reward, ...] = ()
    metrics: Mapping[str, float] = EMPTY_MAP
    ledger: Ledger = field(default_factory=Ledger)
    failure: Failure | None = None
    stops: tuple[tuple[str, StopReason], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One row as trained: a path by its last turn, the credit per sampled token of each trained turn, a weight."""

    episode: str
    leaf: str
    turns: tuple[str, ...]
    """The trained turns of the path, root first."""
    advantages: tuple[bytes, ...]
    """Little-endian float32 per trained turn: one number for all its tokens, or one a sampled token;
    nan for a token that is out of the loss."""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class StoredStep:
    """One learner step: the ordered rows it trained on and the weights it started from and led to."""

    policy: str
    step: int
    rows: tuple[StoredRow, ...]
    before: Version
    stats: Mapping[str, float] = EMPTY_MAP
    state: Any = None
    """JSON: whatever the loop needs to go on after this step (task source state ...)."""


@dataclass(frozen=True, slots=True)
class EpisodeFilter:
    """Which episodes to read; None = any."""

    ids: tuple[str, ...] | None = None
    group: str | None = None
    split: str | None = None
    step: int | None = None
    status: tuple[Status, ...] | None = None
    source: Source | None = None


class Store(Protocol):
    """Entered once; the write side belongs to one process, any number of readers may look on."""

    def __enter__(self) -> Store: ...
    def __exit__(self, *exc: object) -> None: ...

    # --- writing: queued, in order -------------------------------------------------------------------------------------
    def begin(self, head: EpisodeHead) -> None:
        """Takes the lease of a new or unfinished episode. `LeaseLost` if another live writer holds it."""
        ...

    def append(self, episode: str, effects: Sequence[Effect]) -> None: ...

    def finish(self, episode: str, tail: EpisodeTail) -> None:
        """Writes the tail and gives up the lease."""
        ...

    def reward(self, episode: str, reward: Reward) -> None:
        """Adds a reward to an episode that may have ended long ago."""
        ...

    def commit_step(self, *steps: StoredStep) -> None:
        """The rows and the version they started from, of one batch's policies in one transaction."""
        ...

    def put_blob(self, data: bytes) -> str:
        """Stores bytes by content; gives the hex digest."""
        ...

    async def flush(self) -> None:
        """Returns when all that was queued before the call is durable; raises `StoreError` if it cannot be."""
        ...

    # --- reading ---------------------------------------------------------------------------------------------------------
    def heads(self, where: EpisodeFilter = ...) -> Iterator[EpisodeHead]: ...

    def tail(self, episode: str) -> EpisodeTail | None:
        """None while the episode has not ended."""
        ...

    def journal(self, episode: str) -> tuple[Effect, ...]:
        """The effects in commit order, a fork's inherited ones first."""
        ...

    def episodes(self, where: EpisodeFilter = ...) -> Iterator[Episode]:
        """Lazily, in the order in which they began; unfinished ones have status "running"."""
        ...

    def episode(self, episode: str) -> Episode:
        """`UserError` naming near ids if there is none of this id."""
        ...

    def steps(self, policy: str, after: int = -1) -> Iterator[StoredStep]:
        """Committed steps with number > `after`, in order."""
        ...

    def blob(self, digest: str) -> bytes: ...
