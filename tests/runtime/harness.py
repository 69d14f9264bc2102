"""Runs one workflow function on a bare journal: no engine, no store, effects kept in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from agentrl.effect import Effect
from agentrl.limits import Limits
from agentrl.runtime.execution import Execution, Program, Surroundings
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.team import Team


class Log:
    """Keeps what was written, in order."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.on_write: Callable[[Effect], None] | None = None

    def append(self, episode: str, effects: list[Effect]) -> None:
        self.effects.extend(effects)
        if self.on_write is not None:
            for effect in effects:
                self.on_write(effect)

    async def flush(self) -> None: ...


async def play(
    workflow: Callable[[Any, Team], Any],
    record: Sequence[Effect] = (),
    *,
    task: Any = None,
    mode: Literal["live", "replay"] = "live",
    strict: bool = True,
    head: EpisodeHead | None = None,
    limits: Limits | None = None,
    deadline: float | None = None,
    log: Log | None = None,
    kill_at: int | None = None,
) -> tuple[tuple[Effect, ...], EpisodeTail]:
    """One episode. `kill_at=n` suspends it, as a crash would, when n effects have been written."""
    head = head or EpisodeHead("e", "g", 0, 1, None, 7, "w")
    threads = DaemonThreads()
    log = log or Log()
    async with EffectTasks(2.0) as tasks:
        around = Surroundings(tasks, Turnstile(), threads, limits or Limits(grace=2.0), log if mode == "live" else None)

        def begin(world: Any) -> Any:
            return workflow(task, Team(world, {}, {}, threads.run))

        execution = Execution(head, tuple(record), Program(begin, None), around, mode=mode, strict=strict, deadline=deadline)
        if kill_at is not None:
            log.on_write = lambda effect: execution.journal.suspend() if len(log.effects) == kill_at else None
        result = await execution.run()
    threads.close()
    return result
