"""The learner of a critic: a decoder with a linear head on its last hidden states, float32, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from agentrl.credit.values import CRITIC
from agentrl.episode import FloatArray
from agentrl.errors import UserError
from agentrl.learning.checkpoint import read_head
from agentrl.learning.contract import Row, StepStats, TrainedTurn
from agentrl.learning.critic import Critic, chained, column
from agentrl.learning.forward import PackedForward, PathAttention
from agentrl.learning.local import LocalLearner, check_turn
from agentrl.learning.packing import Microbatch
from agentrl.objectives.contract import Entries
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.layers import forward
from agentrl.transformer.weights import digest_weights

WEIGHT, BIAS = "value_head.weight", "value_head.bias"


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """1/2 mean max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2), over the tokens that have a return.

    PPO's, as in verl's `compute_value_loss`. As an objective: V stands in `logprobs`, V_old in `behaviour`, R in `advantage`.
    """

    clip: float | None = 0.2
    needs_behaviour: bool = False

    def __call__(self, entries: Entries) -> tuple[Tensor, Mapping[str, float]]:
        """The loss; metrics are of the values as they are before the update."""
        value, target, old = entries.logprobs, entries.advantage, entries.behaviour
        error = value - target
        squares = error**2
        metrics = {"value/mean": float(value.detach().mean()), "return/mean": float(target.mean())}
        spread = float(target.var(correction=0))
        if spread > 0:
            metrics["explained_variance"] = 1 - float(error.detach().var(correction=0)) / spread
        if self.clip is not None:
            clipped = (old + (value - old).clamp(-self.clip, self.clip) - target) ** 2
            metrics["clip/fraction"] = float((clipped > squares).double().mean())
            squares = torch.maximum(squares, clipped)
        return squares.mean() / 2, metrics


class ValueForward(PackedForward):
    """`Forward` with a value in the place of a log-prob: that of the state in which each scored token was drawn."""

    def score(self, tensors: Mapping[str, Tensor], microbatch: Microbatch) -> Tensor:
        """(U,) values."""
        ids, positions = torch.from_numpy(microbatch.ids), torch.from_numpy(microbatch.positions)
        hidden = forward(self._config, tensors, ids, positions, PathAttention(microbatch))
        return hidden.index_select(0, torch.from_numpy(microbatch.scored_at)) @ tensors[WEIGHT] + tensors[BIAS]


class ValueLearner(LocalLearner):
    """Updates a critic. A row's advantages are its returns: what the values should have been.

    The head begins with zeros, so that the first values are 0. A step is `epochs` updates on the same rows, all against the
    values before the first; one that raises in a later epoch has made those before it. Else as `LocalLearner`, bits included.
    """

    def __init__(
        self,
        model: Path | str,
        critic: Critic,
        *,
        microbatch_tokens: int = 16384,
        threads: int = 1,
        lineage: str = "local",
    ) -> None:
        self.critic = critic
        loss = ValueLoss(critic.clip if critic.epochs > 1 else None)
        super().__init__(
            CRITIC, model, loss, optimiser=critic.optimiser, max_grad_norm=critic.max_grad_norm,
            microbatch_tokens=microbatch_tokens, threads=threads, lineage=lineage,
        )  # fmt: skip
        if not isinstance(self.config, ModelConfig):
            raise UserError(
                f"a critic cannot start from {model}: {self.config.architecture} is run by transformers, whose hidden "
                "states are not read here; Critic(model=FOLDER) of an architecture that agentrl computes (docs/models.md)"
            )
        self._forward = ValueForward(self.config)
        head = read_head(self.model) or {WEIGHT: torch.zeros(self.config.hidden_size), BIAS: torch.zeros(())}
        for name, tensor in head.items():
            self._weights[name] = tensor.requires_grad_()
        self._version = replace(self._version, digest=digest_weights(self.weights()))

    @property
    def sees(self) -> Literal["path", "episode"]:
        """See `Valuer`."""
        return self.critic.sees

    def values(self, rows: Sequence[Row], over: Literal["turn", "token"]) -> list[Row]:
        """See `Valuer`."""
        return [
            replace(row, trained=tuple(
                TrainedTurn(trained.turn, column(trained.turn, drawn, over))
                for trained, drawn in zip(row.trained, values, strict=True)
            ))
            for row, values in zip(rows, self.logprobs(rows), strict=True)
        ]  # fmt: skip

    def step(self, rows: Sequence[Row]) -> StepStats:
        """`epochs` updates, which count as one step. Told of the first, but for `clip/fraction`, which is the last one's."""
        before = self._version.step
        old = self.logprobs(rows) if self.critic.epochs > 1 else None
        done = [super(ValueLearner, self).step(_remembering(rows, old)) for _ in range(self.critic.epochs)]
        self._version = replace(self._version, step=before + 1)
        clipped = {name: done[-1].metrics[name] for name in ("clip/fraction",) if name in done[-1].metrics}
        return replace(done[0], metrics={**done[0].metrics, **clipped})

    def _checked(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Of any policy; as the critic sees them."""
        for number, row in enumerate(rows):
            for trained in row.trained:
                check_turn(f"row {number}", trained.turn, needs_behaviour=False)
        return rows if self.sees == "path" else [chained(row) for row in rows]


def _remembering(rows: Sequence[Row], old: Sequence[Sequence[FloatArray]] | None) -> Sequence[Row]:
    """The rows with the values before the update where log-probs stand, for the loss to clip against."""
    if old is None:
        return rows
    return [
        replace(row, trained=tuple(
            replace(trained, turn=replace(trained.turn, logprobs=column(trained.turn, drawn, "token")))
            for trained, drawn in zip(row.trained, values, strict=True)
        ))
        for row, values in zip(rows, old, strict=True)
    ]  # fmt: skip
