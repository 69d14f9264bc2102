"""SALT: steps that several episodes of a group have in common share what those episodes are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from agentrl.credit.contract import Batch, Credit, Estimator, Ints, Needs, TurnColumns
from agentrl.credit.grpo import GRPO
from agentrl.credit.statistics import normalise, sizes
from agentrl.errors import UserError


@dataclass(frozen=True, slots=True)
class SALT:
    """A(e) = the mean of A_i over the episodes i of the group that took step e = (state, action, next state); else A_i.

    arXiv 2510.20022. A_i is the credit of `base`: GRPO, or another method that gives each turn one number
    (`credit.base=rloo`). Two steps are the same one if their `State.before`, `action` and `after` are, and the
    `history - 1` states of the same agent before. An episode that took a step several times counts once in it. A turn that
    lacks one of the three keys is like no other.

    No code of the authors was found. How much history must agree is not public: 1, the state itself, is this library's reading.
    Canonical actions (the parsed call, not the text) are what the method lives on.
    """

    base: Estimator = field(default_factory=GRPO)
    history: int = 1
    needs: ClassVar[Needs] = Needs(state=True, group=2)

    def __post_init__(self) -> None:
        if self.history < 1:
            raise UserError(f"SALT needs history >= 1 (the state of the step itself), got {self.history}")

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn. `UserError` if the base gives turns more than one number."""
        turns = batch.turns
        credit = self.base(batch)
        if not isinstance(credit.advantage, np.ndarray) or credit.by_row:
            raise UserError(f"SALT(base={type(self.base).__name__}): the base must give one number a turn; take GRPO or RLOO")
        step = (turns.group, *_steps(turns, self.history))
        advantage = credit.advantage - normalise(credit.advantage, by=step, once=turns.episode)
        alone = sizes(by=step, once=turns.episode) == 1
        advantage[alone] = credit.advantage[alone]
        metrics = {**credit.metrics, "credit/merged": float(np.mean(~alone))}
        return Credit(turns, advantage, weight=credit.weight, metrics=metrics, mask=credit.mask)


def _steps(turns: TurnColumns, history: int) -> tuple[Ints, ...]:
    """(T,) columns in which equal steps agree: state, action, next state, and the states of that agent before."""
    order = np.lexsort((turns.agent, turns.episode))  # stable: an agent's turns in their order
    sequence, state = np.stack((turns.episode, turns.agent))[:, order], np.maximum(turns.state, -1)[order]
    earlier = [np.full(len(turns), -2) for _ in range(1, history)]  # -2: there is none; -1: it has no key
    for back, column in enumerate(earlier, start=1):
        same = (sequence[:, back:] == sequence[:, :-back]).all(axis=0)
        column[order[back:][same]] = state[:-back][same]
    return turns.state, turns.action, turns.after, *earlier
