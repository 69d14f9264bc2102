"""One episode, from its head to its tail: the host of its journal.

The workflow runs in the journal's own loop; its effects run here, as tasks of the runtime's group. Whatever goes wrong ends
as a value: a status and whose fault it is.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, Protocol

from agentrl.effect import Effect
from agentrl.episode import Episode, Failure, Reward, Status
from agentrl.errors import AgentRLError, EngineError, ReplayDiverged, RewardError, ToolError, UnknownEffect, capture, describe
from agentrl.runtime import faults
from agentrl.runtime.journal import Journal
from agentrl.limits import Limits
from agentrl.runtime.pending import Pending
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.fold import fold, ledger_of
from agentrl.workflow import Outcome, World


class Log(Protocol):
    """The write side of a store, as far as one episode needs it."""

    def append(self, episode: str, effects: list[Effect]) -> None: ...

    async def flush(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Program:
    """What an episode runs: a workflow bound to its task, and the reward of what it gave."""

    begin: Callable[[World], Coroutine[Any, Any, Any]]
    reward: Callable[[Any, Episode], Any] | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all episodes of a runtime share."""

    tasks: asyncio.TaskGroup
    turnstile: Turnstile
    threads: DaemonThreads
    limits: Limits
    log: Log | None
    """None for a replay: it writes nothing."""


class Execution:
    """Runs one episode. `finished` has its effects and its tail."""

    def __init__(
        self,
        head: EpisodeHead,
        record: tuple[Effect, ...],
        program: Program,
        around: Surroundings,
        *,
        mode: Literal["live", "replay"] = "live",
        strict: bool = True,
        deadline: float | None = None,
    ) -> None:
        self.head = head
        self._program = program
        self._around = around
        self._mode = mode
        self._deadline = deadline if deadline is not None else around.limits.deadline
        self._running: set[asyncio.Task[None]] = set()
        self.journal = Journal(head, record, self, mode=mode, strict=strict)

    async def run(self) -> tuple[tuple[Effect, ...], EpisodeTail]:
        """The journal and the tail. Cancelling this suspends the episode: a resume goes on from where it was."""
        journal, limits = self.journal, self._around.limits
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []

        def overdue() -> None:
            journal.interrupt("deadline", f"{self._deadline:g} s")
            timers.append(loop.call_later(limits.grace, journal.suspend))

        if self._deadline is not None and self._mode == "live":
            timers.append(loop.call_later(max(0.0, self._deadline - journal.clock()), overdue))
        journal.start(self._program.begin(journal))
        try:
            await asyncio.shield(journal.ended)
        except asyncio.CancelledError:
            journal.suspend()
            await asyncio.wait([journal.ended], timeout=limits.grace)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            journal.close()
            if self._running:
                await asyncio.wait(self._running, timeout=limits.grace)
        tail = await self._end()
        return tuple(journal.effects), tail

    def cancel(self, reason: str) -> None:
        """Cancels the episode for good: recorded, its cleanup runs, it is not resumed."""
        self.journal.interrupt("cancel", reason)
        asyncio.get_running_loop().call_later(self._around.limits.grace, self._give_up)

    def _give_up(self) -> None:
        if not self.journal.ended.done():
            self.journal.suspend()

    # --- the host of the journal -----------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._around.tasks.create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def thread(self, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]:
        real = self._around.turnstile.loop
        return real.run_in_executor(executor, call) if executor is not None else self._around.threads.run_on(real, call)

    def write(self, effect: Effect) -> None:
        if self._around.log is not None:
            self._around.log.append(self.head.id, [effect])

    def wake(self, journal: Journal) -> None:
        self._around.turnstile.wake(journal)

    async def execute(self, journal: Journal, pending: Pending) -> None:
        ask = pending.ask
        assert ask is not None
        attempt = 0
        while True:
            asked = journal.asked(pending, attempt)
            if asked.resumed and not ask.idempotent:
                what = f"{ask.kind} {ask.name!r} at {asked.id} ({ask.note})"
                journal.fail(UnknownEffect(f"{what} was begun before a crash and may have happened; it is not idempotent"))
                return journal.complete(pending, Outcome(), asyncio.CancelledError())
            if ask.outlives and not asked.resumed and self._around.log is not None:
                journal.intend(pending)
                await self._around.log.flush()
            faults.point(f"{ask.kind}.begun")
            outcome = Outcome()
            with capture() as caught:
                try:
                    outcome = await ask.run(asked)
                except asyncio.CancelledError as error:
                    ended = ToolError(f"{ask.kind} {ask.name!r} was cancelled from inside") if not pending.abandoned else error
                    journal.complete(pending, Outcome(), ended)
                    raise
            faults.point(f"{ask.kind}.done")
            error = caught.error
            if isinstance(error, EngineError) and error.retryable and attempt < ask.retries:
                journal.lost(pending, attempt, outcome, error)
                await asyncio.sleep(self._around.limits.retry_wait * 2**attempt)
                attempt += 1
                continue
            return journal.complete(pending, outcome, error)

    # --- the end ---------------------------------------------------------------------------------------------------------
    async def _end(self) -> EpisodeTail:
        journal = self.journal
        assert journal.root is not None
        output: Any = None
        failure: Failure | None = None
        status: Status = "done"
        root = journal.root
        if journal.fault is not None:
            status = "divergent" if isinstance(journal.fault, ReplayDiverged) else "failed"
            failure = Failure(journal.fault.fault, str(journal.fault))
        elif journal.interrupted is not None:
            status = "over_budget" if journal.interrupted == "deadline" else "cancelled"
            failure = Failure("runtime", f"{journal.interrupted}: {_reason(journal)}")
        elif not root.done() or root.cancelled():
            status, failure = "cancelled", Failure("workflow", "the workflow cancelled itself")
        elif (error := root.exception()) is not None:
            fault = error.fault if isinstance(error, AgentRLError) else "workflow"
            status, failure = "failed", Failure(fault, describe(error))
        else:
            output, failure = _as_json(root.result())
            status = "done" if failure is None else "failed"
        seconds = journal.effects[-1].at if journal.effects else 0.0
        tail = EpisodeTail(status, output, ledger=ledger_of(journal.effects), failure=failure, seconds=seconds)
        return await self._rewarded(root.result() if status == "done" else None, tail)

    async def _rewarded(self, output: Any, tail: EpisodeTail) -> EpisodeTail:
        effects = self.journal.effects
        episode = fold(self.head, effects, tail)
        status = tail.status
        if status == "done" and any(reason == "context_overflow" for _, reason in episode.stops):
            status = "overlong"
        rewards: tuple[Reward, ...] = ()
        failure = tail.failure
        if tail.status == "done" and self._program.reward is not None:
            with capture() as caught:
                async with asyncio.timeout(self._around.limits.reward_timeout):
                    given = self._program.reward(output, episode)
                    given = await given if inspect.isawaitable(given) else given
                rewards = _rewards(given)
            if caught.error is not None:
                failure = Failure("reward", describe(caught.error))
                status = "failed"
        return EpisodeTail(status, tail.output, rewards, episode.metrics, tail.ledger, failure, episode.stops, tail.seconds)


def _reason(journal: Journal) -> str:
    return next((str(effect.value) for effect in journal.effects if effect.kind == journal.interrupted), "")


def _as_json(output: Any) -> tuple[Any, Failure | None]:
    """The output as it can be stored; a workflow gives JSON or a dataclass of JSON."""
    value: Any = asdict(output) if is_dataclass(output) and not isinstance(output, type) else output
    with capture() as caught:
        return json.loads(json.dumps(value)), None
    return None, Failure(
        "workflow", f"the workflow's output cannot be stored as JSON: {caught.error}; return text, numbers, lists, dicts"
    )


def _rewards(given: Any) -> tuple[Reward, ...]:
    """A number, or numbers by name; nothing else, and nothing that is not finite."""
    named: Mapping[Any, Any] = given if isinstance(given, Mapping) else {"reward": given}
    rewards: list[Reward] = []
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardError(f"the reward function must give a finite number, got {name}={value!r}")
        rewards.append(Reward(str(name), float(value)))
    return tuple(rewards)
