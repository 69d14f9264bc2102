"""How an engine comes by the learners' weights: when they are pushed, and how it makes room for a learner on its device."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from agentrl import faults
from agentrl.engines.contract import Colocated, Engine
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner


class Publisher:
    """Serves every policy with its learner's weights. `batch` batches are learned from when it begins."""

    def __init__(self, experiment: Experiment[Any, Any], engine: Engine, learners: Mapping[str, Learner], batch: int) -> None:
        self._experiment, self._engine, self._learners = experiment, engine, learners
        wanted = getattr(experiment.engine, "colocated", False)
        self._colocated = engine if wanted and engine.info.offers.memory and isinstance(engine, Colocated) else None
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
            await self._engine.publish(name, learner.weights(), learner.version)
        self.served = batch
        if self._made_room:
            await self._engine.resume()
            self._made_room = False

    @asynccontextmanager
    async def room(self) -> AsyncGenerator[None]:
        """Round a learner's step, which may be on the engine's own device; with the `publish` that follows it goes on."""
        if self._colocated is None:
            yield
            return
        await self._engine.pause("retract")
        await self._colocated.release_memory()
        self._made_room = True
        yield
        await self._colocated.resume_memory()
