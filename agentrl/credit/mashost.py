"""MasHost's HRPO: the group's word on the finished system of agents, and a word on every act of building it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agentrl.credit.contract import Batch, Credit, Needs
from agentrl.credit.statistics import combine, normalise


@dataclass(frozen=True, slots=True)
class MasHostHRPO:
    """A_{i,t} = (R_i - mean R) / (std R + eps) + action_weight r_{i,t}.

    Hierarchical Relative Policy Optimization (arXiv 2506.08507). R is the episode's outcome, what the finished graph of agents
    earned, each episode once; r the absolute reward of the turn's own act of construction (a useless role or deletion
    negative, a useful role positive, leaving too early or too late).

    A template: the paper's action rewards and weights are not public and no code was released. That both are added, with
    weight 1, is this library's reading; give the action rewards as turn rewards. Not to be taken for HRPO of latent
    reasoning.
    """

    action_weight: float = 1.0
    std: Literal["sample", "population"] | None = "sample"
    singleton: float | Literal["raw"] = 0.0
    eps: float = 1e-6
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Credit:
        """The advantage of each turn."""
        turns = batch.turns
        graph_level = normalise(
            turns.outcome, by=(turns.group,), std=self.std, eps=self.eps, singleton=self.singleton, once=turns.episode
        )
        return Credit(turns, combine(graph_level, turns.reward, weights=(1.0, self.action_weight)))
