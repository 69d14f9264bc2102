"""A critic as a value, and what it learns from. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats
from agentrl.episode import Episode, FloatArray, Parent, Turn
from agentrl.errors import UserError
from agentrl.learning.contract import Row
from agentrl.learning.optimisers import AdamW, Optimiser
from agentrl.learning.rows import to_rows


@dataclass(frozen=True, slots=True)
class Critic:
    """A learned value function: a decoder of its own with a linear head, trained on the estimator's returns.

    The loss is PPO's, half the larger of (V - R)^2 and (V_old + clip(V - V_old, -clip, clip) - R)^2, V_old being the value
    before the update, so that `clip` says something from the second epoch on. All weights are trained, in float32.
    """

    model: str | Path = ""
    """The folder it starts from: a model, or a critic's checkpoint. Empty = where the policy starts."""
    optimiser: Optimiser = field(default_factory=AdamW)
    clip: float | None = 0.2
    """StepSearch has 0.5; None = plain squares."""
    epochs: int = 1
    """Updates a batch."""
    sees: Literal["path", "episode"] = "path"
    """What stands before a value: the context that the turn was drawn from, or all that any agent was told and said before it
    in the episode (a centralised critic)."""
    max_grad_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"Critic(epochs=...) must be at least 1, got {self.epochs}")
        for name in ("clip", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"Critic({name}=...) must be above 0, or None for none, got {value}")
        if self.sees not in ("path", "episode"):
            raise UserError(f"Critic(sees=...) is 'path' or 'episode', got {self.sees!r}")


@runtime_checkable
class Valuer(Protocol):
    """The learner of a critic, beside what `Learner` asks."""

    @property
    def sees(self) -> Literal["path", "episode"]:
        """That of its `Critic`."""
        ...

    def values(self, rows: Sequence[Row], over: Literal["turn", "token"]) -> list[Row]:
        """The rows with the values of their turns in the place of advantages, (S,); see `column`."""
        ...


def critic_rows(batch: Batch, amounts: Floats | Sequence[Floats], sees: Literal["path", "episode"]) -> list[Row]:
    """Rows that hold each turn of the batch once, whichever policy drew it: with one number a turn, which stands before its
    first drawn token and leaves the others out, or with one a drawn token.

    With `sees="episode"` a row is a whole episode, and a path only once it is `chained`.
    """
    first = [np.arange(length) == 0 for length in batch.turns.length.tolist()] if isinstance(amounts, np.ndarray) else None
    rows = to_rows(batch, Credit(batch.turns, amounts, mask=first), shared="once")
    if sees == "path":
        return rows
    whole: list[Row] = []
    for _, group in groupby(rows, key=lambda row: id(row.episode)):
        own = list(group)
        by_id = {trained.turn.id: trained for row in own for trained in row.trained}
        trained = tuple(by_id[turn.id] for turn in own[0].episode.turns if turn.id in by_id)
        whole.append(Row(own[0].episode, trained[-1].turn, trained))
    return whole


def chained(row: Row) -> Row:
    """The row's episode as one path: each turn behind all that were issued before it, whoever drew them.

    Turns of another tokenizer are left out.
    """
    turns: list[Turn] = []
    length = 0
    for turn in row.episode.turns:
        if turn.tokenizer == row.leaf.tokenizer:
            turns.append(replace(turn, parent=Parent(turns[-1].id, length) if turns else None))
            length += len(turn.context_ids) + len(turn.sampled_ids)
    episode: Episode = replace(row.episode, turns=tuple(turns))
    return replace(row, episode=episode, leaf=episode.by_id[row.leaf.id])


def column(turn: Turn, drawn: FloatArray, over: Literal["turn", "token"]) -> FloatArray:
    """(S,) the value before each sampled token, of those before drawn ones: 0 before a forced one; over turns, everywhere the
    value before the first drawn one."""
    if over == "turn":
        return np.full(len(turn.sampled_ids), drawn[0], np.float32)
    return np.concatenate((np.zeros(turn.forced, np.float32), drawn))
