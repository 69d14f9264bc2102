"""The objectives written out token by token, slowly, for the tests to hold the library's against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentrl.objectives import CISPO, Clipped, Entries, Masked, Truncated


def random_entries(seed: int, rows: int = 4) -> Entries:
    """A few rows of one to three turns of one to four tokens, in fewer episodes than rows, each column random."""
    rng = np.random.default_rng(seed)
    row: list[int] = []
    turn: list[int] = []
    episode: list[int] = []
    weights: list[float] = []
    turns = 0
    for number in range(rows):
        weight = float(rng.choice([0.5, 1.0, 2.0]))
        for _ in range(rng.integers(1, 4)):
            tokens = int(rng.integers(1, 5))
            row += [number] * tokens
            turn += [turns] * tokens
            episode += [number // 2] * tokens
            weights += [weight] * tokens
            turns += 1
    behaviour = rng.normal(-1.5, 0.7, len(row))
    advantage = rng.normal(size=len(row)) * rng.integers(0, 2, len(row))
    return Entries(
        logprobs=torch.tensor(behaviour + rng.normal(0, 0.5, len(row)), requires_grad=True),
        behaviour=torch.tensor(behaviour),
        advantage=torch.tensor(advantage),
        weight=torch.tensor(weights, dtype=torch.float64),
        row=torch.tensor(row),
        turn=torch.tensor(turn),
        episode=torch.tensor(episode),
        num_rows=rows,
        entropy=torch.tensor(rng.uniform(0, 3, len(row)), requires_grad=True),
        reference=torch.tensor(behaviour + rng.normal(0, 0.4, len(row))),
    )


def plain(objective: Clipped, given: Entries) -> Tensor:
    """The loss, from loops over tokens."""
    assert given.reference is not None and given.entropy is not None
    count, new, old = len(given.row), given.logprobs, given.behaviour
    rows, turns = given.row.tolist(), given.turn.tolist()
    unit = {"token": list(range(count)), "turn": turns, "sequence": rows}[objective.ratio]
    now = new.detach()
    start = now if objective.correction else old
    anchor = given.reference if objective.kl_to == "reference" else old
    factor, kept = _correction(objective, given)
    advantage = [float(a) for a in given.advantage]
    losses: list[Tensor] = []
    for n in range(count):
        if objective.kl and objective.kl_form == "reward":
            later = [m for m in range(n, count) if rows[m] == rows[n]]
            advantage[n] -= objective.kl * sum(float(old[m] - anchor[m]) for m in later)
        alike = [m for m in range(count) if unit[m] == unit[n]]
        shared = math.exp(sum(float(now[m] - start[m]) for m in alike) / len(alike))
        ratio = shared * (new[n] - now[n]).exp()
        bounded = ratio.clamp(1 - objective.low, 1 + objective.high)
        if isinstance(objective, CISPO):
            loss = -float(bounded.detach()) * advantage[n] * new[n]
        else:
            loss = torch.maximum(-ratio * advantage[n], -bounded * advantage[n])
            if objective.dual is not None and advantage[n] < 0 and float(loss.detach()) > -objective.dual * advantage[n]:
                loss = torch.tensor(-objective.dual * advantage[n], dtype=torch.float64)
        loss = factor[n] * loss
        if objective.kl and objective.kl_form != "reward":
            d = anchor[n] - new[n]
            loss = loss + objective.kl * {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[objective.kl_form]
        losses.append(loss - objective.entropy * given.entropy[n])
    total = _mean(objective, given, losses, kept)
    positive = [keep and a > 0 for keep, a in zip(kept, advantage, strict=True)]
    return total + objective.nll * _mean(objective, given, [-new[n] for n in range(count)], positive)


def _correction(objective: Clipped, given: Entries) -> tuple[list[float], list[bool]]:
    count, correction = len(given.row), objective.correction
    if correction is None:
        return [1.0] * count, [True] * count
    gaps = (given.logprobs.detach() - given.behaviour).tolist()
    rows = given.row.tolist()
    if correction.by == "sequence":
        gaps = [sum(g for g, r in zip(gaps, rows, strict=True) if r == row) for row in rows]
    weights = [math.exp(gap) for gap in gaps]
    if isinstance(correction, Truncated):
        return [min(w, correction.at) for w in weights], [True] * count
    assert isinstance(correction, Masked)
    return weights, [correction.low <= w <= correction.high for w in weights]


def _mean(objective: Clipped, given: Entries, losses: list[Any], kept: list[bool]) -> Any:
    """Mean over units of the mean (or the sum over `length`) of the tokens that are kept, all of it weighted."""
    names = {"token": [0] * len(losses), "row": given.row.tolist(), "episode": given.episode.tolist()}[objective.aggregate]
    weight = given.weight.tolist()
    total: Any = torch.zeros((), dtype=torch.float64)
    count = 0.0
    for name in sorted(set(names)):
        inside = [n for n in range(len(losses)) if names[n] == name and kept[n]]
        if inside:
            own = sum(weight[n] for n in inside) / len(inside)
            value = sum(weight[n] * losses[n] for n in inside) / sum(weight[n] for n in inside)
            total = total + own * (value if objective.length is None else value * len(inside) / objective.length)
            count += own
    return total / count if count else total
