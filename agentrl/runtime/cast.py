"""Who plays an episode: a seat for each role, and the workflow bound to its task and team."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Generic

from agentrl.engines.contract import Engine
from agentrl.engines.specs import own_renderer
from agentrl.episode import Episode, Sampling
from agentrl.experiment import Experiment, Policy
from agentrl.rendering.contract import Renderer
from agentrl.runtime.demonstrations import Demonstration, Recital, reciting
from agentrl.runtime.execution import Program
from agentrl.runtime.sandboxes import Sandboxes
from agentrl.runtime.threads import DaemonThreads
from agentrl.store.contract import EpisodeHead
from agentrl.team import Seat, Team
from agentrl.workflow import OutputT, TaskT, World


class Cast(Generic[TaskT, OutputT]):
    """Of one runtime. `reference`: whether the reference policy has seats of its own."""

    def __init__(
        self,
        experiment: Experiment[TaskT, OutputT],
        engine: Engine,
        renderers: Mapping[str, Renderer],
        columns: Sequence[str],
        threads: DaemonThreads,
        sandboxes: Sandboxes,
        *,
        reference: bool,
    ) -> None:
        self._experiment = experiment
        self._engine = engine
        self._renderers = renderers
        self._columns = tuple(columns)
        self._threads = threads
        self._sandboxes = sandboxes
        played = {False: experiment.by_role, True: experiment.by_reference if reference else experiment.by_role}
        self._seats = {
            (by_reference, greedy): {role: self._seat(policy, greedy) for role, policy in played[by_reference].items()}
            for by_reference in (False, True)
            for greedy in (False, True)
        }

    def program(self, task: TaskT, head: EpisodeHead, *, greedy: bool, shown: Demonstration | None = None) -> Program:
        """What the episode of this head runs: by the seats of its source, and through a demonstration if one is given."""
        experiment = self._experiment
        seats = self._seats[head.source == "reference", greedy]
        if shown is not None:
            seats = {role: reciting(seat) for role, seat in seats.items()}

        def begin(world: World) -> Coroutine[Any, Any, OutputT]:
            told = world if shown is None else Recital(world, shown)
            team = Team(told, experiment.workflow.agents, seats, self._threads.run, self._sandboxes.of(head))
            return experiment.workflow.function(task, team)

        def reward(output: Any, episode: Episode) -> Any:
            assert experiment.reward is not None
            return experiment.reward(task, output, episode)

        return Program(begin, reward if experiment.reward is not None else None, task)

    def _seat(self, policy: Policy, greedy: bool) -> Seat:
        renderer = self._renderers[policy.name]
        sampling = Sampling(
            temperature=0.0 if greedy else policy.temperature,
            top_k=policy.top_k,
            top_p=policy.top_p,
            stop_ids=renderer.stop_ids,
        )
        takes_messages = own_renderer(self._experiment.engine, policy.name) is not None
        columns = () if greedy else self._columns
        return Seat(
            policy.name, self._engine, renderer, sampling, self._experiment.limits.engine_retries, takes_messages, columns
        )
