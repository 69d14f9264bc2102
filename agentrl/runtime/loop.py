"""An event loop of its own for every episode: the world as its workflow sees it.

A workflow is plain asyncio code: tasks, groups, `as_completed`, timeouts, locks, threads, whatever a library does. To run it
again with the same results, only two things may decide what happens next: its code, and the order in which effects end. So
each episode has a small loop, driven by the real one. It has a queue of ready callbacks and nothing else; whatever would
come from outside (an effect's result, a timer, a thread, a cancellation) goes through the journal, which hands in one at a
time and lets the queue run dry before the next. Time stands still in between: `loop.time()` is when the last result came.

Tasks are branches (see `branch.py`). Hashes of tasks and futures are ordinals, so that sets of them, which asyncio itself
iterates over, have one order in every process.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import threading
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from agentrl.errors import WorkflowError, capture
from agentrl.runtime.branch import BRANCH, Branch
from agentrl.runtime.jobs import Job, job_here
from agentrl.runtime.refused import REFUSED, refused

_running_loop: Callable[[], Any] = events._get_running_loop  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
_set_running_loop: Callable[[Any], None] = events._set_running_loop  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
_ENSURE_FUTURE: Any = tasks._ensure_future.__code__  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
_AS_COMPLETED = "as_completed", "__init__"
_frame: Callable[[int], Any] = sys._getframe  # pyright: ignore[reportPrivateUsage]


class Outside(Protocol):
    """What the loop asks of the journal."""

    def clock(self) -> float:
        """Seconds since the episode began, as the workflow may see them."""
        ...

    def timer(self, handle: EpisodeTimer) -> None:
        """A callback is wanted at `handle.when()`."""
        ...

    def timer_cancelled(self, handle: EpisodeTimer) -> None: ...

    def thread(self, call: Callable[[], Any], name: str, executor: Any) -> asyncio.Future[Any]:
        """Runs sync code in a thread."""
        ...

    def from_thread(self, handle: asyncio.Handle, job: Job, position: int) -> None:
        """A callback handed in by sync code that this episode runs in a thread; called in that thread."""
        ...

    def from_outside(self, error: WorkflowError) -> None:
        """Something else tried to hand in a callback; called in any thread."""
        ...

    def unhandled(self, context: dict[str, Any]) -> None: ...


class EpisodeFuture(asyncio.Future[Any]):
    """A future whose hash is its ordinal."""

    __slots__ = ("_ordinal",)

    def __init__(self, *, loop: EpisodeLoop) -> None:
        super().__init__(loop=loop)
        self._ordinal = loop.next_ordinal()

    def __hash__(self) -> int:
        return self._ordinal


class EpisodeTask(asyncio.Task[Any]):
    """A task whose hash is its ordinal, and whose name is its branch's."""

    __slots__ = ("_ordinal", "branch")

    def __init__(self, coroutine: Any, *, loop: EpisodeLoop, branch: Branch, context: contextvars.Context) -> None:
        self._ordinal = loop.next_ordinal()
        self.branch = branch
        super().__init__(coroutine, loop=loop, name=branch.path or "workflow", context=context)

    def __hash__(self) -> int:
        return self._ordinal

    def set_name(self, value: object) -> None:
        """Until 3.12 asyncio names a task after it has made it."""
        self.branch.rename(str(value))
        super().set_name(value)


class EpisodeTimer(asyncio.TimerHandle):
    """A timer that knows its effect. (Timers are equal when time and callback are: they must not be keys.)"""

    __slots__ = ("pending",)
    pending: Any


class EpisodeLoop(asyncio.AbstractEventLoop):
    """See the module. Not thread-safe but for `call_soon_threadsafe`; entered by `drain` only."""

    slow_callback_duration = 0.1

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._ready: deque[asyncio.Handle] = deque()
        self._ordinal = 0
        self._entered = False
        self._closed = False
        self._thread = threading.get_ident()
        self._generators: list[Any] = []
        self._many_generators = 16
        self._tasks: list[EpisodeTask] = []
        self._many_tasks = 16
        self._begun: dict[int, tuple[Any, EpisodeTask]] = {}

    # --- driven by the journal -------------------------------------------------------------------------------------------
    def drain(self, limit: int = 10_000) -> bool:
        """Runs ready callbacks until there are none (True) or `limit` have run (False: call again)."""
        ready = self._ready
        if not ready:
            return True
        outer, hooks = _running_loop(), sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generator_begun, finalizer=_ignore)
        _set_running_loop(self)
        self._entered = True
        try:
            for _ in range(limit):
                if not ready:
                    return True
                handle: Any = ready.popleft()
                if not handle._cancelled:
                    try:
                        handle._run()
                    except SystemExit as error:  # a task has it as its exception; one episode never ends the process
                        self._outside.unhandled({"message": "a workflow called sys.exit", "exception": error})
        finally:
            self._entered = False
            _set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)
        return not ready

    def root(self, coroutine: Coroutine[Any, Any, Any], path: str = "") -> EpisodeTask:
        """A task begun from outside: the workflow itself, on the branch with the empty path, or its last rites."""
        branch = Branch(path)
        context = contextvars.copy_context()
        context.run(BRANCH.set, branch)
        outer, self._entered = self._entered, True
        try:
            return self._task(coroutine, branch, context)
        finally:
            self._entered = outer

    def here(self) -> Branch | None:
        """The branch that runs now; None outside the workflow."""
        if _running_loop() is not self:
            return None
        task = asyncio.current_task(self)
        return task.branch if type(task) is EpisodeTask else BRANCH.get(None)

    def next_ordinal(self) -> int:
        """Counts futures and tasks; only for hashes."""
        self._ordinal += 1
        return self._ordinal

    def resolve(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Ends a future from outside, for the journal."""
        if future.done():
            return
        outer, self._entered = self._entered, True
        try:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        finally:
            self._entered = outer

    def cancel(self, task: asyncio.Task[Any], why: str) -> None:
        """Cancels a task from outside, for the journal."""
        outer, self._entered = self._entered, True
        try:
            task.cancel(why)
        finally:
            self._entered = outer

    def run_now(self, handle: asyncio.Handle) -> None:
        """Queues a handle that the journal has let through."""
        self._ready.append(handle)

    def live_tasks(self) -> list[EpisodeTask]:
        """The tasks that have not ended, in the order in which they began."""
        self._tasks = [task for task in self._tasks if not task.done()]
        return self._tasks.copy()

    def has_generators(self) -> bool:
        """Whether the workflow left async generators that it began."""
        self._generators = [generator for generator in self._generators if generator.ag_frame is not None]
        return bool(self._generators)

    def _generator_begun(self, generator: Any) -> None:
        self._generators.append(generator)
        if len(self._generators) > self._many_generators:
            self.has_generators()
            self._many_generators = max(16, 2 * len(self._generators))

    # --- what asyncio asks of a loop ---------------------------------------------------------------------------------------
    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        """Queues a callback; only from inside, for whatever comes from outside must be an effect."""
        handle = asyncio.Handle(callback, args, self, context)
        if self._entered:
            self._ready.append(handle)
        elif not self._closed:
            raise WorkflowError(_FROM_OUTSIDE)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        """From sync code that the episode runs in a thread: in the order of the record. From anywhere else: refused."""
        if self._entered and threading.get_ident() == self._thread:
            return self.call_soon(callback, *args, context=context)
        if self._closed:
            raise RuntimeError("Event loop is closed")
        job = job_here()
        if job is None or job.owner is not self._outside:
            error = WorkflowError(_FROM_OUTSIDE)
            self._outside.from_outside(error)
            raise error
        if job.cancelled:
            raise RuntimeError("the workflow has cancelled the call of sync code that runs here; it can hand nothing over")
        context = contextvars.copy_context() if context is None else context.copy()
        context.run(BRANCH.set, job.branch)
        handle = asyncio.Handle(callback, args, self, context)
        self._outside.from_thread(handle, job, job.branch.next_position())
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._outside.clock() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = EpisodeTimer(when, callback, args, self, context)
        self._outside.timer(handle)
        return handle

    def _timer_handle_cancelled(self, handle: EpisodeTimer) -> None:
        self._outside.timer_cancelled(handle)

    def time(self) -> float:
        return self._outside.clock()

    def create_future(self) -> asyncio.Future[Any]:
        return EpisodeFuture(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None) -> Any:
        if _frame(1).f_code is _ENSURE_FUTURE and (task := self._begun_in_order(coro)) is not None:
            return task
        parent = self.here()
        if parent is None:
            raise WorkflowError("a task of a workflow can only be begun by the workflow itself; begin it there")
        branch = parent.child(name, getattr(coro, "__qualname__", type(coro).__qualname__).rpartition(".")[2])
        if context is None:
            context = contextvars.copy_context()
            context.run(BRANCH.set, branch)
        return self._task(coro, branch, context)

    def _task(self, coro: Any, branch: Branch, context: contextvars.Context) -> EpisodeTask:
        task = EpisodeTask(coro, loop=self, branch=branch, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._many_tasks:
            self._many_tasks = max(16, 2 * len(self.live_tasks()))
        return task

    def _begun_in_order(self, coro: Any) -> EpisodeTask | None:
        """`as_completed` begins bare coroutines in the order of a set, that is of their addresses: they begin in its own."""
        if id(coro) in self._begun:
            return self._begun.pop(id(coro))[1]
        frame = _frame(3).f_back  # above create_task, _ensure_future and ensure_future: maybe a comprehension
        for _ in range(2):
            if frame is None or frame.f_code.co_filename != tasks.__file__:
                return None
            if frame.f_code.co_name in _AS_COMPLETED:
                break
            frame = frame.f_back
        if frame is None or frame.f_code.co_name not in _AS_COMPLETED:
            return None
        given: Any = next((frame.f_locals[name] for name in ("fs", "aws") if name in frame.f_locals), None)
        if not isinstance(given, list | tuple | dict):
            raise WorkflowError(
                f"as_completed over a {type(given).__name__} of coroutines begins them in an order that cannot be replayed; "
                "give it a list"
            )
        for each in dict.fromkeys(given):
            if asyncio.iscoroutine(each):
                self._begun[id(each)] = (each, self.create_task(each))
        if id(coro) not in self._begun:
            raise WorkflowError("as_completed takes coroutines and tasks here; other awaitables begin in an order of addresses")
        return self._begun.pop(id(coro))[1]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        inner = func
        while isinstance(inner, functools.partial):  # asyncio.to_thread hands over partial(context.run, func)
            inner = inner.args[0] if inner.args and callable(inner.args[0]) else inner.func
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        return self._outside.thread(functools.partial(func, *args) if args else func, name, executor)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self._outside.unhandled(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._entered

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Nothing runs here any more; what still refers to the loop finds it closed."""
        self._closed = True
        self._ready.clear()
        self._generators.clear()
        self._tasks.clear()

    async def shutdown_asyncgens(self) -> None:
        """Closes the async generators that the workflow began and left; at its end, so that the order is its own."""
        generators, self._generators = self._generators, []
        for generator in generators:
            with capture() as caught:
                await generator.aclose()
            if caught.error is not None:
                what = f"an async generator failed when it was closed: {generator!r}"
                self._outside.unhandled({"message": what, "exception": caught.error, "asyncgen": generator})


_FROM_OUTSIDE = (
    "a future or callback of a workflow was handed in from outside it (by a tool, another loop, or a thread that the workflow "
    "did not begin by asyncio.to_thread or run_in_executor): that would not be in the journal; return the value from the tool "
    "or from team.effect instead"
)

for _name in REFUSED:
    setattr(EpisodeLoop, _name, refused(_name))


def _ignore(_: Any) -> None:
    """An abandoned async generator is closed at the episode's end, never when the collector happens to find it."""
