"""GiGPO: a group baseline over episodes, and one over all turns of the group that stood in the same state."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Ints, Needs
from agentrl.credit.statistics import alone, combine, normalise, returns, sizes, totals
from agentrl.episode import Episode, Turn
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class GiGPO:
    """A = A_E + omega A_S (Feng et al. 2025, arXiv 2505.10978).

    A_E compares whole episodes of a group (eq. 3), A_S the return-to-go of turns of a group that began in the same state
    (eqs. 6 and 7; exact match of `State.before`). Both subtract the mean, and divide by `std` + 1e-6 if it is given; None is
    the default of the authors' code ("mean_norm"), "sample" its "mean_std_norm".

    `statistics="trajectories"` counts each episode once, as the paper does; "rows" counts it once for each of its turns, as
    the authors' code does by default. `invalid_penalty` is subtracted from both scores of a turn that is not valid, after the
    returns (0.1 in the code). A state seen once gives A_S = 0; an episode alone in its group gives A_E = `singleton`, A_S = 0.

    With `similarity` (0.9 in the authors' script for search) states are what the turn was shown: `State.raw`, else the results
    of the tools that its parent called, else `State.before`. A turn joins the first state of its group whose first text is at
    least that similar (difflib's ratio), in the batch's order; what was shown to none is a state of its own.
    """

    gamma: float = 0.95
    omega: float = 1.0
    std: Literal["sample", "population"] | None = None
    statistics: Literal["trajectories", "rows"] = "trajectories"
    invalid_penalty: float = 0.0
    similarity: float | None = None
    singleton: float | Literal["raw"] = 0.0
    needs: ClassVar[Needs] = Needs(state=True, group=2)

    def __post_init__(self) -> None:
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise UserError(f"GiGPO: similarity must be above 0 and at most 1, or None for equal states; got {self.similarity}")

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        state = turns.state if self.similarity is None else _alike(batch, self.similarity)
        penalty = np.where(turns.valid, 0.0, self.invalid_penalty)
        once = turns.episode if self.statistics == "trajectories" else None
        score = totals(turns) - penalty
        episode_level = normalise(score, by=(turns.group,), std=self.std, singleton=self.singleton, once=once)
        state_level = normalise(returns(turns, self.gamma) - penalty, by=(turns.group, state), std=self.std)
        state_level[alone(turns)] = 0.0
        advantage = combine(episode_level, state_level, weights=(1.0, self.omega))
        return Credit(turns, advantage, metrics=_metrics(advantage, turns.group, state))


def _alike(batch: Batch, least: float) -> Ints:
    """(T,) the cluster of what each turn was shown; see `GiGPO`."""
    turns = batch.turns
    clusters: dict[int, list[tuple[str, int]]] = {}
    found = np.zeros(len(turns), dtype=np.int64)
    for t, (turn, group) in enumerate(zip(turns.turn, turns.group.tolist(), strict=True)):
        text = _shown(batch.episodes[turns.episode[t]], turn)
        known = clusters.setdefault(group, []) if text else []
        found[t] = next((cluster for first, cluster in known if _is_alike(text, first, least)), -1)
        if found[t] < 0:
            found[t] = t
            known.append((text, t))
    return found


def _shown(episode: Episode, turn: Turn) -> str:
    if turn.state is not None and turn.state.raw:
        return turn.state.raw
    if turn.parent is not None and (calls := episode.by_id[turn.parent.turn].tool_calls):
        return "\n".join(call.output for call in calls)
    return turn.state.before if turn.state is not None else ""


def _is_alike(text: str, first: str, least: float) -> bool:
    if text == first:
        return True
    matcher = SequenceMatcher(None, text, first)
    return matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least and matcher.ratio() >= least


def _metrics(advantage: Floats, group: Ints, state: Ints) -> dict[str, float]:
    """The share of turns without signal, and of turns whose state another turn of the group saw as well."""
    if not len(advantage):
        return {"credit/zero": 0.0, "credit/anchored": 0.0}
    shared = sizes(by=(group, state)) > 1
    return {"credit/zero": float(np.mean(advantage == 0.0)), "credit/anchored": float(np.mean(shared))}
