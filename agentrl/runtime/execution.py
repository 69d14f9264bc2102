"""One episode, from its head to its tail: the host of its journal.

The workflow runs in the journal's own loop; its effects run here, as tasks of the runtime. Whatever goes wrong ends as a
value: a status and whose fault it is.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, Literal, Protocol

from agentrl import faults
from agentrl.effect import Effect, EffectKind
from agentrl.episode import Episode, Failure, Reward, Status
from agentrl.errors import (
    AgentRLError,
    EngineError,
    ReplayDiverged,
    RewardError,
    ToolError,
    UnknownEffect,
    capture,
    describe,
)
from agentrl.limits import Limits
from agentrl.runtime.journal import Journal
from agentrl.runtime.pending import NOTHING, Pending, Place
from agentrl.runtime.scope import EffectTasks, end_tasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.fold import fold
from agentrl.workflow import Ask, World


class Log(Protocol):
    """The write side of a store, as far as one episode needs it."""

    def append(self, episode: str, effects: list[Effect]) -> None: ...

    async def flush(self) -> None: ...


class Gate(Protocol):
    """Holds effects until `Journal.go_on`."""

    def holds(self, kind: EffectKind, place: Place, issued: int) -> bool: ...


STOPPED = "stopped"
"""Name of the cancellation by which a rollout plan ends an episode that has given what was wanted of it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What an episode runs: a workflow bound to its task, and the reward of what it gave."""

    begin: Callable[[World], Coroutine[Any, Any, Any]]
    reward: Callable[[Any, Episode], Any] | None
    task: Any = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all episodes of a runtime share."""

    tasks: EffectTasks
    turnstile: Turnstile
    threads: DaemonThreads
    limits: Limits
    log: Log | None
    """None for a replay: it writes nothing."""


class Execution:
    """Runs one episode; afterwards `episode` is what came of it."""

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
        gate: Gate | None = None,
    ) -> None:
        self.head = head
        self._gate = gate
        self._program = program
        self._around = around
        self._mode = mode
        self._deadline = deadline if deadline is not None else around.limits.deadline
        self.running: set[asyncio.Task[Any]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._aside = False
        self.episode: Episode | None = None
        self.journal = Journal(head, record, self, mode=mode, strict=strict)

    async def run(self) -> tuple[tuple[Effect, ...], EpisodeTail]:
        """The journal and the tail. Cancelling this suspends the episode: a resume goes on from where it was."""
        journal, grace = self.journal, self._around.limits.grace
        if self._deadline is not None:
            left = max(0.0, self._deadline - journal.written.at()) if self._mode == "live" else self._deadline
            self._timers.append(asyncio.get_running_loop().call_later(left, self._overdue))
        self._around.tasks.members.add(self)
        try:
            journal.start(self._program.begin(journal.world))
            await asyncio.shield(journal.ended)
        except asyncio.CancelledError:
            journal.suspend()
            await asyncio.wait([journal.ended], timeout=grace)
            raise
        finally:
            try:
                await self._settle()
            finally:
                journal.close()
                if not self.running:
                    self._around.tasks.members.discard(self)
        if self._aside:
            raise asyncio.CancelledError(f"episode {self.head.id} was put aside with its runtime")
        return tuple(journal.written.effects), await self._end()

    async def _settle(self) -> None:
        """Waits for the effects that run for nobody: what they cost belongs to the episode."""
        for timer in self._timers:
            timer.cancel()
        self.journal.stop()
        if self.running:
            await asyncio.wait(list(self.running), timeout=self._around.limits.grace)
            self.running = {task for task in self.running if not task.done()}
            await end_tasks(self.running, self._around.limits.grace)

    def cancel(self, reason: str) -> None:
        """Cancels the episode for good: recorded, its cleanup runs, it is not resumed."""
        self.journal.interrupt("cancel", reason)
        self._leave_after_grace()

    def stop(self) -> None:
        """As `cancel`, for an episode that has given what was wanted of it: its status is "stopped"."""
        self.journal.interrupt("cancel", "the rollout plan goes on with others", STOPPED)
        self._leave_after_grace()

    def put_aside(self) -> None:
        """The runtime ends before the episode: a resume goes on from where it was."""
        self._aside = True
        self.journal.suspend()

    def _overdue(self) -> None:
        if self._mode == "live":
            self.journal.interrupt("deadline", f"{self._deadline:g} s")
            self._leave_after_grace()
        else:
            told = f"the replay waits since {self._deadline:g} s for sync code that came back when it was recorded"
            self.journal.fail(ReplayDiverged(f"episode {self.head.id}: {told}"))

    def _leave_after_grace(self) -> None:
        grace = self._around.limits.grace
        self._timers.append(asyncio.get_running_loop().call_later(grace, lambda: self.journal.suspend(final=True)))

    # --- the host of the journal -----------------------------------------------------------------------------------------
    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._around.tasks.loop.create_task(coroutine, name=name)  # not the running loop: that is the episode's
        self.running.add(task)
        return task

    def holds(self, kind: EffectKind, place: Place, issued: int) -> bool:
        return self._gate is not None and self._gate.holds(kind, place, issued)

    def thread(self, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]:
        real = self._around.turnstile.loop
        return real.run_in_executor(executor, call) if executor is not None else self._around.threads.run_on(real, call)

    def write(self, effect: Effect) -> None:
        if self._around.log is not None:
            self._around.log.append(self.head.id, [effect])

    def wake(self, journal: Journal) -> None:
        self._around.turnstile.wake(journal)

    async def abandon(self, journal: Journal, pending: Pending) -> None:
        ask = pending.ask
        assert ask is not None and ask.abandon is not None
        with capture() as caught:
            await ask.abandon(journal.asked(pending))
        if caught.error is not None:
            pending.task.cancel()
        task = asyncio.current_task()
        assert task is not None
        self.running.discard(task)

    async def execute(self, journal: Journal, pending: Pending) -> None:
        ask = pending.ask
        assert ask is not None
        try:
            with capture() as caught:
                while not await self._attempt(journal, pending, ask):
                    await asyncio.sleep(self._around.limits.retry_wait * 2**pending.attempt)
                    pending.attempt += 1
            if caught.error is not None:
                journal.broke(caught.error)  # not the effect's own failure: the store's
        finally:
            self.running.discard(pending.task)

    async def _attempt(self, journal: Journal, pending: Pending, ask: Ask) -> bool:
        """Runs the effect once; False = it failed in a way that may pass, and is tried again."""
        asked = journal.asked(pending)
        if ask.outlives and not await self._may_begin(journal, pending, ask, asked.resumed):
            return True
        faults.point(f"{ask.kind}.begun")
        outcome = NOTHING
        with capture() as caught:
            try:
                outcome = await ask.run(asked)
            except asyncio.CancelledError as error:
                if not pending.abandoned:
                    raise ToolError(f"{ask.kind} {ask.name!r} was cancelled from inside") from error
                journal.complete(pending, NOTHING, error)
                raise
            except SystemExit as error:
                raise ToolError(f"{ask.kind} {ask.name!r} called sys.exit({error.code})") from error
        faults.point(f"{ask.kind}.done")
        error = caught.error
        if isinstance(error, ReplayDiverged):  # nothing that the workflow catches may hide it
            journal.fail(error)
            return True
        if isinstance(error, EngineError) and error.retryable and pending.attempt < ask.retries and not pending.abandoned:
            journal.written.lose(pending, NOTHING, error)
            return False
        journal.complete(pending, outcome, error)
        return True

    async def _may_begin(self, journal: Journal, pending: Pending, ask: Ask, resumed: bool) -> bool:
        """Commits the intent of what outlives the process; what was begun before a crash must be idempotent."""
        if resumed:
            if not ask.idempotent:
                journal.fail(UnknownEffect(f"{pending} was begun before a crash and may have happened; it is not idempotent"))
            return ask.idempotent
        if self._around.log is not None:
            journal.written.intend(pending)
            try:
                await self._around.log.flush()
            except asyncio.CancelledError as error:
                if pending.abandoned:
                    journal.complete(pending, NOTHING, error)  # so that the intent has an end: it was not begun
                raise
        return True

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
            word = _interruption(journal)
            status = "over_budget" if journal.interrupted == "deadline" else "cancelled"
            failure = Failure("runtime", f"{journal.interrupted}: {word.value}")
            if word.name == STOPPED:
                status, failure = "stopped", None
            if root.done() and not root.cancelled() and root.exception() is None:
                output, _ = _as_json(root.result())  # what it saved on its way out
        elif journal.halted:
            status, failure = "cancelled", Failure("replay", "the record ends here: the episode was stopped or cut off")
        elif not root.done() or root.cancelled():
            status, failure = "cancelled", Failure("workflow", "the workflow cancelled itself")
        elif (error := root.exception()) is not None:
            culprit = _culprit(error)
            fault = culprit.fault if isinstance(culprit, AgentRLError) else "workflow"
            status, failure = "failed", Failure(fault, describe(error))
        else:
            output, failure = _as_json(root.result())
            status = "done" if failure is None else "failed"
        seconds = journal.written.effects[-1].at if journal.written.effects else 0.0
        tail = EpisodeTail(status, output, failure=failure, seconds=seconds)
        episode = fold(self.head, journal.written.effects, tail, task=self._program.task)
        rewards: tuple[Reward, ...] = ()
        if status == "done":
            if any(reason == "context_overflow" for _, reason in episode.stops):
                status = "overlong"
            if self._program.reward is not None:
                rewards, failure = await self._rewarded(root.result(), episode)
                status = status if failure is None else "failed"
        changed = rewards or status != episode.status
        ended = {"status": status, "rewards": (*episode.rewards, *rewards), "failure": failure}
        self.episode = replace(episode, **ended) if changed else episode
        return EpisodeTail(status, output, rewards, episode.metrics, episode.ledger, failure, episode.stops, seconds)

    async def _rewarded(self, output: Any, episode: Episode) -> tuple[tuple[Reward, ...], Failure | None]:
        assert self._program.reward is not None
        rewards: tuple[Reward, ...] = ()
        with capture() as caught:
            async with asyncio.timeout(self._around.limits.reward_timeout):
                given = self._program.reward(output, episode)
                given = await given if inspect.isawaitable(given) else given
            rewards = _rewards(given)
        return rewards, Failure("reward", describe(caught.error)) if caught.error is not None else None


def _culprit(error: BaseException) -> BaseException:
    """Of a group of errors the first that names whose fault it is."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(AgentRLError) or error).exceptions[0]
    return error


def _interruption(journal: Journal) -> Effect:
    """The word from outside that ended the episode."""
    return next(effect for effect in journal.written.effects if effect.kind == journal.interrupted)


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
