"""What a probe is: token ids to be scored at the turns of an episode, and what their log-probs come to.

The runtime asks when an episode has ended and before its group is handed on: scoring needs nothing but recorded ids, so that no
workflow knows of it. What the engine says stands in the journal behind the episode, and in `Turn.probes`. A gauge's values
stand there as well; it reads what is recorded and asks no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from agentrl.episode import Episode, FloatArray, IntArray, Turn
from agentrl.rendering.contract import Renderer


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """How likely `ids[start:]` are behind `ids[:start]` for the policy of `turn`, at which the answer is recorded."""

    turn: Turn
    ids: IntArray
    start: int


class Probe(Protocol):
    """A frozen dataclass with its own numbers as fields."""

    @property
    def name(self) -> str:
        """That of the probes it records; estimators ask for it by `Needs.probes`."""
        ...

    def __call__(self, task: Any, episode: Episode, renderers: Mapping[str, Renderer]) -> Iterable[Question]:
        """What is asked of a finished episode; renderers by policy."""
        ...

    def value(self, logprobs: FloatArray) -> float:
        """What the log-probs of one question come to."""
        ...


@runtime_checkable
class Gauge(Protocol):
    """A frozen dataclass with its own numbers as fields."""

    columns: ClassVar[tuple[str, ...]]
    """Per-token columns that it reads; they are recorded with every sampled turn."""

    @property
    def name(self) -> str:
        """See `Probe`."""
        ...

    def measure(self, episode: Episode) -> Iterable[tuple[Turn, float]]:
        """What it reads at which turns of a finished episode."""
        ...
