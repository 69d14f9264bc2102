"""Runs one workflow function on a bare journal: no engine, no store, effects kept in a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from agentrl.agent import Agent
from agentrl.effect import Effect
from agentrl.limits import Limits
from agentrl.runtime.execution import Execution, Program, Surroundings
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.team import Seat, Team

HEAD = EpisodeHead("e", "g", 0, 1, None, 7, "w")


class Log:
    """Keeps what was written, in order."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.flushed = 0
        self.on_write: Callable[[int], None] = lambda count: None

    def append(self, episode: str, effects: list[Effect]) -> None:
        self.effects.extend(effects)
        self.on_write(len(self.effects))

    async def flush(self) -> None:
        self.flushed = len(self.effects)


async def play(
    workflow: Callable[[Any, Team], Any],
    record: Sequence[Effect] = (),
    *,
    task: Any = None,
    mode: Literal["live", "replay"] = "live",
    strict: bool = True,
    head: EpisodeHead = HEAD,
    limits: Limits | None = None,
    deadline: float | None = None,
    log: Log | None = None,
    kill_at: int | None = None,
    interrupt: tuple[Literal["deadline", "cancel"], int] | None = None,
    agents: Mapping[str, Agent] | None = None,
    seats: Mapping[str, Seat] | None = None,
    reward: Callable[[Any, Any], Any] | None = None,
    began: Callable[[Execution], None] = lambda execution: None,
) -> tuple[tuple[Effect, ...], EpisodeTail]:
    """One episode. `kill_at=n` suspends it, as a crash would, when n effects have been written; `interrupt` cancels it then."""
    threads = DaemonThreads()
    log = log or Log()
    limits = limits or Limits(grace=2.0)
    async with EffectTasks(limits.grace) as tasks:
        around = Surroundings(tasks, Turnstile(), threads, limits, log if mode == "live" else None)

        def begin(world: Any) -> Any:
            return workflow(task, Team(world, agents or {}, seats or {}, threads.run))

        execution = Execution(head, tuple(record), Program(begin, reward), around, mode=mode, strict=strict, deadline=deadline)

        def written(count: int) -> None:
            if count == kill_at:
                execution.journal.suspend()
            if interrupt is not None and count == interrupt[1]:
                execution.journal.interrupt(interrupt[0], "test")

        log.on_write = written
        began(execution)
        result = await execution.run()
    threads.close()
    return result
