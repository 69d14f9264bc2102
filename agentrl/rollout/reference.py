"""References: what a frozen policy earns on a task, beside the rollouts that learn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar

from agentrl.engines.contract import Offers
from agentrl.episode import Episode
from agentrl.errors import UserError
from agentrl.rollout.contract import GroupRun, RolloutPlan
from agentrl.rollout.independent import Independent


@dataclass(frozen=True, slots=True)
class Referenced:
    """The episodes of `plan`, and `samples` of `Experiment.reference` on the same task. Sampling of PVPO (arXiv 2508.21104).

    Those of the reference have source "reference": they are a baseline, never trained and in no metric of the policy. A task is
    measured once; its later groups hold copies, which are sampled no more (`agentrl.runtime.references`). A reference rollout
    that was lost is tried again in the task's next group. With `refresh` a task is measured anew when it comes in another
    `refresh` learner steps: steps 0 to refresh - 1 share a measurement, and so on.
    """

    plan: RolloutPlan = field(default_factory=Independent)
    samples: int = 4
    refresh: int = 0
    forks: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("refresh", 0)):
            if getattr(self, name) < least:
                raise UserError(f"Referenced: {name} must be >= {least}, got {getattr(self, name)}")
        if self.plan.columns or not (self.plan.whole and self.plan.exact) or isinstance(self.plan, Referenced):
            raise UserError(
                f"Referenced takes a plan of whole rollouts that needs no columns, got {type(self.plan).__name__}; "
                "--set rollout.plan=independent"
            )

    @property
    def size(self) -> int:
        return self.plan.size + self.samples

    @property
    def references(self) -> int:
        return self.samples

    def needs(self, offers: Offers) -> str:
        return self.plan.needs(offers)

    async def __call__(self, run: GroupRun) -> tuple[Episode, ...]:
        async with asyncio.TaskGroup() as tasks:
            measured = [
                tasks.create_task(run.reference(member, self.refresh), name=f"reference-{member}")
                for member in range(self.plan.size, self.size)
            ]
            sampled = tasks.create_task(self.plan(run), name="plan")
        return (*sampled.result(), *(episode.result() for episode in measured))
