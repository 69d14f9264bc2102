"""Generalised advantage estimation, over turns or tokens, from the values of a critic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Needs, TurnColumns
from agentrl.credit.statistics import normalise, returns
from agentrl.credit.values import VALUE
from agentrl.episode import Turn
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class GAE:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al. 2015, arXiv 1506.02438).

    `over="turn"`: t counts turns and V_t is the value before the turn's first drawn token, or its probe "value".
    `over="token"`: t counts drawn tokens through all turns, a turn's reward is on its last one, and what the tools said
    between is no step. With `by="agent"` t + 1 is the same agent's. Behind the end V is 0, and so it is behind an episode
    that was cut off, as in verl; by default such an episode is not trained. `whiten=True` then subtracts the batch's mean and
    divides by its sample deviation, each turn or token once (verl's masked_whiten, which StepSearch uses over tokens).

    Values are those of the experiment's critic; without one, of a probe "value" (over turns) or the turns' column of that
    name, a number for each sampled token. A run in which nothing gives them is refused.
    """

    gamma: float = 1.0
    lam: float = 0.95
    over: Literal["turn", "token"] = "turn"
    by: Literal["episode", "agent"] = "episode"
    whiten: bool = False
    needs: ClassVar[Needs] = Needs(probes=(VALUE,))

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn, or of each of its drawn tokens. `UserError` names a turn without values."""
        _, advantage = self._estimate(batch)
        if self.whiten:
            advantage = normalise(advantage, by=(), std="sample")
        return Credit(batch.turns, self._by_turn(batch, advantage))

    def returns(self, batch: Batch) -> Floats | list[Floats]:
        """What a critic learns: advantage (before whitening) plus value, the lambda-return."""
        value, advantage = self._estimate(batch)
        return self._by_turn(batch, advantage + value)

    def _estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        """Value and advantage of each step."""
        steps = batch.turns if self.over == "turn" else _token_steps(batch.turns)
        value = np.array([_before(turn) for turn in steps.turn]) if self.over == "turn" else _token_values(batch.turns)
        immediate = returns(steps, 0.0, by=self.by)
        delta = immediate + self.gamma * _following(value, steps, self.by) - value
        return value, returns(replace(steps, reward=delta), self.gamma * self.lam, by=self.by, outcome=False)

    def _by_turn(self, batch: Batch, of_steps: Floats) -> Floats | list[Floats]:
        return of_steps if self.over == "turn" else np.split(of_steps, np.cumsum(batch.turns.length)[:-1])


def _before(turn: Turn) -> float:
    """The value before the turn."""
    for probe in turn.probes:
        if probe.name == VALUE and probe.value is not None:
            return probe.value
    return float(_of_tokens(turn)[0])


def _of_tokens(turn: Turn) -> Floats:
    """The values before each drawn token."""
    if VALUE not in turn.columns:
        raise UserError(
            f"GAE needs values: turn {turn.id} of agent {turn.agent} has no column {VALUE!r}; train a critic "
            "(Experiment(..., critic=Critic())), record a number for each sampled token, or take an estimator without values"
        )
    values = np.asarray(turn.columns[VALUE].values, dtype=np.float64)
    if values.shape != (len(turn.sampled_ids),) or not np.isfinite(values).all():
        raise UserError(
            f"turn {turn.id} of agent {turn.agent}: column {VALUE!r} must hold {len(turn.sampled_ids)} finite numbers, "
            f"one for each sampled token; got shape {values.shape}, {int(np.isfinite(values).sum())} of them finite"
        )
    return values[turn.forced :]


def _token_values(turns: TurnColumns) -> Floats:
    return np.concatenate([_of_tokens(turn) for turn in turns.turn])


def _token_steps(turns: TurnColumns) -> TurnColumns:
    """The columns that `returns` reads with an entry for each drawn token; a turn's reward is on its last."""
    reward = np.zeros(int(turns.length.sum()))
    reward[np.cumsum(turns.length) - 1] = turns.reward
    repeated = {name: np.repeat(getattr(turns, name), turns.length) for name in ("episode", "agent", "outcome")}
    tokens = tuple(turn for turn, length in zip(turns.turn, turns.length.tolist(), strict=True) for _ in range(length))
    return replace(turns, turn=tokens, reward=reward, **repeated)


def _following(values: Floats, steps: TurnColumns, by: Literal["episode", "agent"]) -> Floats:
    """For each step the value of the next one of its sequence; 0 behind the last."""
    agents = steps.agent if by == "agent" else np.zeros(len(steps), np.int64)
    order = np.lexsort((agents, steps.episode))  # stable: in a sequence, the steps' own order
    same = (steps.episode[order][1:] == steps.episode[order][:-1]) & (agents[order][1:] == agents[order][:-1])
    result = np.zeros(len(steps))
    result[order[:-1][same]] = values[order[1:][same]]
    return result
