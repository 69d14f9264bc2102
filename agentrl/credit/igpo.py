"""IGPO: a turn is worth what it adds to the policy's own probability of the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from agentrl.credit.contract import Batch, Credit, Floats, Needs, TurnColumns
from agentrl.credit.statistics import alone, normalise, returns
from agentrl.episode import Episode

PROBE = "answer"
"""Name of the probe: p_t, the likelihood of the right answer before turn t (`agentrl.probes.AnswerProbe`)."""


@dataclass(frozen=True, slots=True)
class IGPO:
    """A_t = sum_{k>=t} gamma^(k-t) z_k, z the rewards r of all turns of the group, normalised together (arXiv 2510.14967).

    r_t = p_{t+1} - p_t, and the outcome on the last turn; rewards of a turn's own are added. Of several right answers the
    likeliest counts. An episode of which a turn lacks its probe has no gains, as in the authors' code. One alone in its group
    gets `singleton`, for its turns have none but each other to be compared with. That the deviation is the population's is this
    library's reading. `form="released"` is what the authors' function computes: per token, return (gamma = 1, cut off behind
    each turn, where the loss mask is 0) minus the group's mean at the same position of the reply, no deviation; "uncut" is the
    same without the cut.
    """

    form: Literal["paper", "released", "uncut"] = "paper"
    gamma: float = 1.0
    std: Literal["sample", "population"] | None = "population"
    singleton: float = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(probes=(PROBE,), group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn, or of each drawn token in the released form."""
        turns = batch.turns
        gain, probed = _gains(turns)
        rewarded = turns.reward + gain + np.where(turns.last, turns.outcome, 0.0)
        metrics = {"credit/gain": float(np.mean(gain)), "credit/probed": float(np.mean(probed))} if len(turns) else {}
        if self.form != "paper":
            return Credit(turns, _released(batch, rewarded, cut=self.form == "released"), metrics=metrics)
        scored = normalise(rewarded, by=(turns.group,), std=self.std, eps=self.eps)
        advantage = returns(replace(turns, reward=scored), self.gamma, outcome=False)
        advantage[alone(turns)] = self.singleton
        return Credit(turns, advantage, metrics=metrics)


def _gains(turns: TurnColumns) -> tuple[Floats, np.ndarray]:
    """(T,) p_{t+1} - p_t, 0 on the last turn and in an episode that is not wholly probed; and whether it is."""
    probes = ((t, probe) for t, turn in enumerate(turns.turn) for probe in turn.probes if probe.name == PROBE)
    found = [(t, probe.value) for t, probe in probes if probe.value is not None]
    before = np.full(len(turns), np.nan)
    np.fmax.at(before, [t for t, _ in found], [value for _, value in found])  # of several right answers the likeliest
    gain = np.zeros(len(turns))
    gain[:-1] = np.where(turns.last[:-1], 0.0, before[1:] - before[:-1])
    lacking = np.unique(turns.episode[np.isnan(before)])
    probed = ~np.isin(turns.episode, lacking)
    return np.where(probed, gain, 0.0), probed


def _released(batch: Batch, rewards: Floats, *, cut: bool) -> list[Floats]:
    """The advantage of each turn's drawn tokens, see `IGPO`."""
    turns = batch.turns
    spans = [(0, 0)] * len(turns)
    length = 0
    bounds = np.searchsorted(turns.episode, np.arange(len(batch.episodes) + 1)).tolist()
    for episode, (first, end) in zip(batch.episodes, pairwise(bounds), strict=True):
        for t, span in enumerate(_spans(episode, [turn.id for turn in turns.turn[first:end]]), start=first):
            spans[t], length = span, max(length, span[1])
    reward, mask = np.zeros((len(batch.episodes), length)), np.zeros((len(batch.episodes), length))
    for (start, end), number, value in zip(spans, turns.episode.tolist(), rewards.tolist(), strict=True):
        reward[number, end - 1] = value
        mask[number, start:end] = 1.0
    found, ahead = np.zeros_like(reward), np.zeros(len(reward))
    for at in range(length - 1, -1, -1):
        found[:, at] = reward[:, at] + ahead
        ahead = found[:, at] * (mask[:, at] if cut else 1.0)
    advantage = np.zeros_like(found)
    for group in np.unique(turns.group).tolist():
        members = np.unique(turns.episode[turns.group == group])
        rows = found[members]
        advantage[members] = np.where((rows == rows[0]).all(axis=0), 0.0, rows - rows.mean(axis=0))
    return [advantage[number, start:end] for (start, end), number in zip(spans, turns.episode.tolist(), strict=True)]


def _spans(episode: Episode, names: Sequence[str]) -> list[tuple[int, int]]:
    """Where the drawn tokens of these turns stand behind the episode's first prompt."""
    spans: list[tuple[int, int]] = []
    first = end = 0
    for number, turn in enumerate(episode.by_id[name] for name in names):
        stop = episode.path_length(turn)
        start = stop - len(turn.sampled_ids)
        if not number:
            first = start
        start = max(start - first, end)  # a context begun anew stands behind what was before it
        end = start + len(turn.sampled_ids)
        spans.append((start + turn.forced, end))
    return spans
