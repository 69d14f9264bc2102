"""How much less certain the policy is behind a tool's result than it was at first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from agentrl.episode import Episode, Turn
from agentrl.errors import UserError
from agentrl.rollout.entropy import ENTROPY


@dataclass(frozen=True, slots=True)
class EntropyRise:
    """Mean entropy of a turn's first `tokens` drawn tokens minus that of the agent's first turn, in nats.

    At each turn that goes on from a tool's result: what ARPO (arXiv 2507.19849) branches by, `agentrl.rollout.EntropyTree`, as
    a number for any plan. A turn without the column (of a policy behind an endpoint) has none.
    """

    tokens: int = 20
    name: str = "entropy_rise"
    columns: ClassVar[tuple[str, ...]] = (ENTROPY,)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"EntropyRise needs tokens >= 1, got {self.tokens}")

    def measure(self, episode: Episode) -> Iterator[tuple[Turn, float]]:
        """See `Gauge`."""
        first: dict[str, float | None] = {}
        for turn in episode.turns:
            now = self._mean(turn)
            before = first.setdefault(turn.agent, now)
            after_tool = turn.parent is not None and episode.by_id[turn.parent.turn].tool_calls
            if after_tool and now is not None and before is not None:
                yield turn, now - before

    def _mean(self, turn: Turn) -> float | None:
        """None where there is nothing to read."""
        if ENTROPY not in turn.columns or len(turn.sampled_ids) <= turn.forced:
            return None
        return float(np.mean(turn.columns[ENTROPY].values[turn.forced :][: self.tokens], dtype=np.float64))
