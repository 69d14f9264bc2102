"""The learner in this process, on the CPU: one policy, float32, all weights or LoRA adapters beside frozen ones."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agentrl.engines.contract import check_ids
from agentrl.episode import FloatArray, Turn, Version
from agentrl.errors import LearnerError, UserError
from agentrl.learning import checkpoint
from agentrl.learning.contract import Row, StepStats, TrainedTurn
from agentrl.learning.forward import open_forward
from agentrl.learning.lora import LoRA
from agentrl.learning.optimisers import Muon, Optimiser, State
from agentrl.learning.packing import Microbatch, Plan, plan
from agentrl.learning.reference import Reference
from agentrl.objectives.contract import Entries, Objective
from agentrl.transformer.adapter import Adapter, init_adapter, matrices, merge
from agentrl.transformer.foreign import Foreign, read_config
from agentrl.transformer.weights import digest_weights, load_weights

log = logging.getLogger(__name__)


class LocalLearner:
    """Updates the policy that begins from the folder `model`.

    The same rows in the same order, with the same `threads` on the same machine, give the same weights to the bit. The loss is
    that of the whole step however it is cut into microbatches of `microbatch_tokens` unique tokens. A step that raises has
    changed nothing. Torch's number of threads is set for the time of a step and put back. The frozen policy in the folder
    `reference` is what a KL term is against, where the rows hold no log-probs of one.
    """

    def __init__(
        self,
        policy: str,
        model: Path | str,
        objective: Objective,
        *,
        optimiser: Optimiser | None = None,
        lora: LoRA | None = None,
        reference: Path | str | None = None,
        max_grad_norm: float | None = 1.0,
        microbatch_tokens: int = 16384,
        threads: int = 1,
        lineage: str = "local",
    ) -> None:
        if microbatch_tokens < 1 or threads < 1:
            raise UserError(
                f"LocalLearner needs microbatch_tokens and threads of at least 1, got {microbatch_tokens}, {threads}"
            )
        self.policy, self.model, self.objective = policy, Path(model), objective
        self.optimiser: Optimiser = Muon() if optimiser is None else optimiser
        self.max_grad_norm, self.microbatch_tokens, self.threads = max_grad_norm, microbatch_tokens, threads
        self.config = read_config(self.model)
        self._transposed = isinstance(self.config, Foreign) and self.config.transposed
        self._forward = open_forward(self.config)
        self.seconds: dict[str, float] = {}
        """CPU seconds that the last step spent in "packing", "forward", "backward" and "optimiser"."""
        self.lora = lora
        self._weights = {name: tensor.clone() for name, tensor in load_weights(self.model).items()}
        self._trained = self._weights
        """What learns: the weights themselves, or an adapter to them."""
        if lora is not None:
            chosen = matrices(self._weights, lora.targets, self._forward.apart)
            self._trained = init_adapter(self._weights, chosen, lora.rank, seed=0, transposed=self._transposed)
        for tensor in self._trained.values():
            tensor.requires_grad_()
        self._reference: Reference | None = None
        if reference is not None:
            base = lora is not None and Path(reference).resolve() == self.model.resolve()
            self._reference = Reference(Path(reference), self.model, self._weights if base else None)
        self._state: State = {}
        self._updates = 0
        self._version = Version(lineage, policy, 0, digest_weights(self.weights()))

    @property
    def version(self) -> Version:
        """Step and digest of the current weights."""
        return self._version

    @property
    def updates(self) -> int:
        """How many updates the optimiser has made; it counts on through `restore`."""
        return self._updates

    def weights(self) -> Mapping[str, Tensor]:
        """The current weights by Hugging Face name, float32, an adapter merged in.

        Not a copy: the next step changes them in place.
        """
        return self._merged(self._trained)

    def _merged(self, trained: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.lora is None:
            return {name: tensor.detach() for name, tensor in trained.items()}
        with torch.no_grad():
            return merge(self._weights, trained, self.lora.scale, transposed=self._transposed)

    def step(self, rows: Sequence[Row]) -> StepStats:
        """One update on the rows, in their order.

        `LearnerError`, before anything changes, for a loss or gradient that is not finite; `UserError` for rows that cannot be
        trained: none, of another policy, or without the behaviour log-probs that the objective needs.
        """
        with _threads(self.threads):
            clock = _Clock()
            layout = self._layout(rows)
            if not len(layout.entries):
                raise UserError(
                    "a learner step needs at least one trained token; leave the step out when no episode was trained"
                )
            clock.lap("packing")
            loss, metrics = self._gradients(layout, rows, clock)
            metrics["grad_norm"] = self._clip(rows)
            metrics["lr"] = self.optimiser.rate(self._updates)
            self._update()
            clock.lap("optimiser")
        self.seconds = clock.seconds
        trained = len(layout.entries)
        return StepStats(loss=loss, tokens=layout.tokens, trained_tokens=trained, rows=len(rows), metrics=metrics)

    def logprobs(self, rows: Sequence[Row]) -> list[list[FloatArray]]:
        """For each row and each of its trained turns the log-probs of all drawn tokens under the current weights."""
        unmasked = [replace(row, trained=tuple(TrainedTurn(t.turn, t.advantage) for t in row.trained)) for row in rows]
        with _threads(self.threads), torch.no_grad():
            layout = self._layout(unmasked)
            scored = [self._forward.score(self._tensors(), microbatch) for microbatch in layout.microbatches]
            flat = torch.cat(scored).numpy()[layout.scored] if scored else np.zeros(0, np.float32)
        ends = np.cumsum([len(trained.turn.sampled_ids) - trained.turn.forced for row in rows for trained in row.trained])
        turns = iter(np.split(flat, ends))
        return [[next(turns) for _ in row.trained] for row in rows]

    def save(self, folder: Path) -> None:
        """See `Learner.save` and `agentrl.learning.checkpoint`."""
        adapter = None
        if self.lora is not None:
            adapter = Adapter(self.model.resolve(), self.lora.rank, self.lora.alpha, self._trained, self._transposed)
        weights = {} if adapter else self.weights()
        content = checkpoint.Checkpoint(self._version, self._updates, repr(self.optimiser), weights, self._state, adapter)
        checkpoint.save(folder, content, self.config, self.model)

    def restore(self, folder: Path) -> None:
        """Goes on exactly as the learner that saved the folder would have. The schedule goes on by the number of updates.

        `LearnerError` if the folder is broken, is of another policy or model, or was saved with another kind of optimiser.
        Other settings of the same kind (a longer schedule, say) are taken, with a warning in the log.
        """
        found = checkpoint.load(folder)
        if found.version.policy != self.policy:
            raise LearnerError(f"checkpoint {folder} is of policy {found.version.policy!r}, this learner's is {self.policy!r}")
        if (found.adapter is None) != (self.lora is None):
            kind = "all weights" if found.adapter is None else f"LoRA adapters of rank {found.adapter.rank}"
            raise LearnerError(f"checkpoint {folder} was saved by a learner of {kind}; open the learner with the same lora")
        trained = found.weights if found.adapter is None else found.adapter.tensors
        shapes = {name: tuple(tensor.shape) for name, tensor in self._trained.items()}
        if {name: tuple(tensor.shape) for name, tensor in trained.items()} != shapes:
            raise LearnerError(
                f"checkpoint {folder} is of another model than {self.model}, or of another adapter; open the learner "
                "on that model with the same lora"
            )
        if found.adapter is not None and digest_weights(self._merged(trained)) != found.version.digest:
            raise LearnerError(
                f"checkpoint {folder} holds an adapter to {found.adapter.base}, this learner's base is {self.model}"
            )
        if found.settings.partition("(")[0] != type(self.optimiser).__name__:
            raise LearnerError(
                f"checkpoint {folder} was saved with {found.settings}, this learner has {self.optimiser!r}; use the same kind "
                "of optimiser, or open the folder as a model to begin anew from its weights"
            )
        if found.settings != repr(self.optimiser):
            log.warning("checkpoint %s was saved with %s; going on with %r", folder, found.settings, self.optimiser)
        with torch.no_grad():
            for name, tensor in self._trained.items():
                tensor.copy_(trained[name])
        self._state, self._updates, self._version = dict(found.state), found.updates, found.version

    def _checked(self, rows: Sequence[Row]) -> Sequence[Row]:
        for number, row in enumerate(rows):
            for trained in row.trained:
                if trained.turn.policy != self.policy:
                    raise UserError(
                        f"row {number}: turn {trained.turn.id} is of policy {trained.turn.policy!r}, this learner's is "
                        f"{self.policy!r}; build rows with to_rows(batch, credit, {self.policy!r})"
                    )
                check_turn(f"row {number}", trained.turn, needs_behaviour=self.objective.needs_behaviour)
        return rows

    def _layout(self, rows: Sequence[Row]) -> Plan:
        apart = getattr(self.objective, "idle_at_zero", False)
        layout = plan(self._checked(rows), self.microbatch_tokens, idle_apart=apart)
        for ids in (layout.entries.target, *(microbatch.ids for microbatch in layout.microbatches)):
            if len(ids):
                check_ids(ids.astype(np.int32), self.config.vocab_size, f"policy {self.policy!r}")
        return layout

    def _gradients(self, layout: Plan, rows: Sequence[Row], clock: _Clock) -> tuple[float, dict[str, float]]:
        """Puts the gradient of the objective on what learns; gives the loss and the objective's metrics.

        The objective sees all entries at once. If there is one microbatch to learn from, its graph is kept. The log-probs of
        all others are first made without gradient, and made again one by one if the objective has a gradient for them to carry
        back: exact, in the memory of one.
        """
        for tensor in self._trained.values():
            tensor.grad = None
        live = [microbatch for microbatch in layout.microbatches if not microbatch.idle]
        kept = live[0] if len(live) == 1 else layout.microbatches[0] if len(layout.microbatches) == 1 else None
        scores: list[tuple[Tensor, ...]] = []
        for microbatch in layout.microbatches:
            with torch.set_grad_enabled(microbatch is kept):
                scores.append(self._score(microbatch))
        scored = torch.from_numpy(layout.scored)
        leaves = [torch.cat(column).detach().double().requires_grad_() for column in zip(*scores, strict=True)]
        reference = self._reference_of(layout)
        clock.lap("forward")
        with torch.enable_grad():
            entries = _entries(layout, [leaf[scored] for leaf in leaves], reference)
            loss, metrics = self.objective(entries)
        value = float(loss.detach())
        if not math.isfinite(value):
            broken = [entries.logprobs, entries.behaviour, entries.advantage, entries.weight]
            raise LearnerError(self._blame(f"the loss is {value}", layout, rows, broken))
        if not loss.requires_grad:
            raise LearnerError(f"{type(self.objective).__name__} gave a loss that does not depend on the log-probs; mend it")
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        if not all(bool(grad.isfinite().all()) for grad in found):
            raise LearnerError(self._blame("the objective's gradient is not finite", layout, rows, [g[scored] for g in found]))
        pieces = zip(*(grad.split([len(m.targets) for m in layout.microbatches]) for grad in found), strict=True)
        for microbatch, score_of, grads in zip(layout.microbatches, scores, pieces, strict=True):
            if not any(bool(grad.any()) for grad in grads):
                continue
            with torch.enable_grad():
                outputs = score_of if microbatch is kept else self._score(microbatch)
            torch.autograd.backward(outputs, [g.to(output.dtype) for g, output in zip(grads, outputs, strict=True)])
        clock.lap("backward")
        return value, dict(metrics)

    def _score(self, microbatch: Microbatch) -> tuple[Tensor, ...]:
        """Log-probs of the scored tokens, and their entropies if the objective asks for them."""
        if getattr(self.objective, "needs_entropy", False):
            return self._forward.score_with_entropy(self._tensors(), microbatch)
        return (self._forward.score(self._tensors(), microbatch),)

    def _reference_of(self, layout: Plan) -> Tensor | None:
        """The reference's log-prob of each entry: as recorded, else computed if the objective asks for it."""
        if layout.entries.reference is not None:
            return torch.from_numpy(layout.entries.reference)
        if self._reference is None or not getattr(self.objective, "needs_reference", False):
            return None
        return self._reference.logprobs(layout)

    def _tensors(self) -> Mapping[str, Tensor]:
        """What the model computes with."""
        if self.lora is None:
            return self._weights
        return self._forward.adapted(self._weights, self._trained, self.lora.scale)

    def _clip(self, rows: Sequence[Row]) -> float:
        """The norm of the whole gradient, which is scaled down to `max_grad_norm` if it is larger."""
        gradients = {name: tensor.grad for name, tensor in self._trained.items() if tensor.grad is not None}
        norm = math.sqrt(math.fsum(float(torch.linalg.vector_norm(grad)) ** 2 for grad in gradients.values()))
        if not math.isfinite(norm):
            bad = [name for name, grad in gradients.items() if not bool(grad.isfinite().all())]
            raise LearnerError(
                f"step {self._version.step + 1} of {self.policy}: the gradient is not finite (first in {bad[:3]}); weights are "
                f"unchanged. Rows: {_named(rows, range(len(rows)))}. Lower the learning rate, or leave these episodes out"
            )
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            for grad in gradients.values():
                grad.mul_(self.max_grad_norm / norm)
        return norm

    def _update(self) -> None:
        gradients = {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for name, tensor in self._trained.items()
        }
        trained = {name: tensor.detach() for name, tensor in self._trained.items()}
        self.optimiser.update(trained, gradients, self._state, self._updates)
        for tensor in self._trained.values():
            tensor.grad = None
        self._updates += 1
        self._version = replace(self._version, step=self._version.step + 1, digest=digest_weights(self.weights()))

    def _blame(self, what: str, layout: Plan, rows: Sequence[Row], columns: Sequence[Tensor]) -> str:
        """Names the rows whose entries are not finite in the first column that has such entries."""
        culprits: list[int] = []
        for column in columns:
            bad = ~column.detach().isfinite().numpy()
            if bad.any() and not culprits:
                culprits = [int(row) for row in np.unique(layout.entries.path[bad])]
        return (
            f"step {self._version.step + 1} of {self.policy}: {what}; weights are unchanged. Rows: "
            f"{_named(rows, culprits or range(len(rows)))}. Lower the learning rate, or leave these episodes out"
        )


class _Clock:
    """CPU seconds by name, each counted from the lap before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] = now - self._last
        self._last = now


@contextmanager
def _threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_turn(where: str, turn: Turn, *, needs_behaviour: bool) -> None:
    """Refuses a turn that cannot be scored, or not be compared with how it was drawn; `UserError` names it."""
    if turn.media:
        raise UserError(f"{where}: turn {turn.id} has media, which the local learner cannot read; leave it untrained")
    if not needs_behaviour:
        return
    drawn = turn.logprobs[turn.forced :]
    if not np.isfinite(drawn).all():
        raise UserError(
            f"{where}: turn {turn.id} lacks the behaviour log-probs of {int((~np.isfinite(drawn)).sum())} of its {len(drawn)} "
            "drawn tokens, and the objective compares with them; use an engine that gives log-probs, or NLL"
        )
    masked = turn.sampling.top_k > 0 or turn.sampling.top_p < 1
    if turn.logprobs_at == "after_mask" and masked:
        raise UserError(
            f"{where}: the behaviour log-probs of turn {turn.id} were taken after top-k or top-p, the learner's are of the "
            "whole softmax; have the engine give them before the mask, or sample without one"
        )


def _entries(layout: Plan, scored: Sequence[Tensor], reference: Tensor | None) -> Entries:
    columns = layout.entries
    return Entries(
        logprobs=scored[0],
        behaviour=torch.from_numpy(columns.behaviour),
        advantage=torch.from_numpy(columns.advantage),
        weight=torch.from_numpy(columns.weight),
        row=torch.from_numpy(columns.path),
        turn=torch.from_numpy(columns.turn),
        episode=torch.from_numpy(columns.episode),
        num_rows=layout.num_rows,
        entropy=scored[1] if len(scored) > 1 else None,
        reference=reference,
    )


def _named(rows: Sequence[Row], numbers: Sequence[int]) -> str:
    shown = ", ".join(f"{number} (episode {rows[number].episode.id})" for number in numbers[:4])
    return shown if len(numbers) <= 4 else f"{shown} and {len(numbers) - 4} more"
