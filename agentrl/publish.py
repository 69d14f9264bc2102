"""How an engine comes by the learners' weights: when they are pushed, and how it makes room for a learner on its device."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentrl import faults
from agentrl.engines.contract import Colocated, Engine, Weights
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner

KEPT = 8
"""Published adapter folders of a policy that stay."""


class Publisher:
    """Serves every policy with its learner's weights. `batch` batches are learned from when it begins.

    `folder` is for adapters, which an engine reads from disk; it must see it.
    """

    def __init__(
        self, experiment: Experiment[Any, Any], engine: Engine, learners: Mapping[str, Learner], batch: int, folder: Path
    ) -> None:
        self._experiment, self._engine, self._learners = experiment, engine, learners
        self._folder = folder
        self._colocated = engine if engine.info.offers.memory and isinstance(engine, Colocated) else None
        if not getattr(experiment.engine, "colocated", False):
            self._colocated = None
        elif self._colocated is None:
            raise UserError(
                f"colocated=True, but {engine.info.name} cannot free its memory; start one server, with --enable-memory-saver"
            )
        self._made_room = False
        self.served = batch
        """Batches learned from when the engine last took weights."""

    def is_due(self, batch: int) -> bool:
        """Whether weights are pushed after `batch` batches: as often as was asked, and when what is sampled with the old ones
        could no longer be trained. An engine that made room has lost the old ones."""
        late = batch - self.served > self._experiment.max_staleness
        return late or self._colocated is not None or batch % self._experiment.push_every == 0

    async def publish(self, batch: int) -> None:
        """Pushes the weights of all policies; requests in flight go on with them."""
        for name, learner in self._learners.items():
            faults.point("publish.begun")
            await self._engine.publish(name, await self._weights(name, learner), learner.version)
        self.served = batch
        if self._made_room:
            await self._engine.resume()
            self._made_room = False

    async def _weights(self, name: str, learner: Learner) -> Weights:
        """Tensors; for an engine that serves adapters a folder, of which the last few stay, as requests may still use them."""
        if not self._engine.info.offers.adapters:
            return learner.weights()
        if self._experiment.by_name[name].lora is None:
            raise UserError(
                f"policy {name!r} learns all its weights, but its engine serves adapters; Policy({name!r}, lora=16)"
            )
        folder = self._folder / name / f"step-{learner.version.step:06d}"
        await asyncio.to_thread(learner.save, folder)
        for old in sorted(folder.parent.glob("step-*"))[:-KEPT]:
            await asyncio.to_thread(shutil.rmtree, old, ignore_errors=True)
        return {"path": folder}

    @asynccontextmanager
    async def room(self) -> AsyncGenerator[None]:
        """Round a learner's step, which may be on the engine's own device; with the `publish` that follows it goes on."""
        if self._colocated is None:
            yield
            return
        await self._engine.pause("retract")
        await self._colocated.release_memory()
        self._made_room = True
        try:
            yield
        finally:
            await self._colocated.resume_memory()
