"""An event loop of its own for every episode: the world as its workflow sees it.

A workflow is plain asyncio code: tasks, groups, `as_completed`, timeouts, locks, threads, whatever a library does. To run it
again with the same results, only two things may decide what happens next: its code, and the order in which effects end. So
each episode has a small loop, driven by the real one. It has a queue of ready callbacks and nothing else; whatever would
come from outside (an effect's result, a timer, a thread, a cancellation) goes through the journal, which hands in one at a
time and lets the queue run dry before the next. Time stands still in between: `loop.time()` is when the last result came.

Tasks are branches. A branch has a path: the names (or the coroutine's name and ordinal) of the tasks from the root to it.
Task hashes are ordinals, so that sets of tasks, which asyncio itself iterates over, have one order in every process.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from agentrl.errors import WorkflowError

logger = logging.getLogger(__name__)


class Branch:
    """One line of execution of an episode: where the positions of its effects are counted."""

    __slots__ = ("_children", "_position", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._children: dict[str, int] = {}
        self._position = 0

    def next_position(self) -> int:
        """The position of the branch's next effect."""
        position = self._position
        self._position = position + 1
        return position

    def child(self, name: str | None, coroutine: str) -> Branch:
        """A task begun here: named explicitly, else by its coroutine's name and ordinal among that name."""
        key = name if name is not None else coroutine
        ordinal = self._children[key] if key in self._children else 0
        self._children[key] = ordinal + 1
        suffix = "" if name is not None and not ordinal else f"#{ordinal}"
        return Branch(f"{self.path}/{key}{suffix}")


BRANCH: contextvars.ContextVar[Branch] = contextvars.ContextVar("agentrl_branch")


class Outside(Protocol):
    """What the loop asks of the journal."""

    def clock(self) -> float:
        """Seconds since the episode began, as the workflow may see them."""
        ...

    def timer(self, handle: asyncio.TimerHandle) -> None:
        """A callback is wanted at `handle.when()`."""
        ...

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None: ...

    def thread(self, call: Callable[[], Any], name: str, executor: Any) -> asyncio.Future[Any]:
        """Runs sync code in a thread."""
        ...

    def from_thread(self, handle: asyncio.Handle) -> None:
        """A callback handed in by another thread."""
        ...

    def unhandled(self, context: dict[str, Any]) -> None: ...


class EpisodeFuture(asyncio.Future[Any]):
    """A future whose hash is its ordinal."""

    def __init__(self, *, loop: EpisodeLoop) -> None:
        super().__init__(loop=loop)
        self._ordinal = loop.next_ordinal()

    def __hash__(self) -> int:
        return self._ordinal


class EpisodeTask(asyncio.Task[Any]):
    """A task whose hash is its ordinal."""

    def __init__(self, coroutine: Any, *, loop: EpisodeLoop, name: str | None, context: contextvars.Context) -> None:
        self._ordinal = loop.next_ordinal()
        super().__init__(coroutine, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._ordinal


class EpisodeLoop(asyncio.AbstractEventLoop):
    """See the module. Not thread-safe but for `call_soon_threadsafe`; entered by `entered()` or `drain()` only."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self._ready: deque[asyncio.Handle] = deque()
        self._ordinal = 0
        self._entered = False
        self._closed = False
        self._generators: list[Any] = []
        self.tasks: set[asyncio.Task[Any]] = set()

    # --- driven by the journal -------------------------------------------------------------------------------------------
    def drain(self, limit: int = 10_000) -> bool:
        """Runs ready callbacks until there are none (True) or `limit` have run (False: call again)."""
        if not self._ready:
            return True
        with self.entered():
            ready = self._ready
            for _ in range(limit):
                if not ready:
                    return True
                handle = ready.popleft()
                if not handle._cancelled:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
                    handle._run()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        return not self._ready

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Inside, this loop is the running one."""
        outer = events._get_running_loop()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.append, finalizer=_ignore)
        events._set_running_loop(self)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        self._entered = True
        try:
            yield
        finally:
            self._entered = False
            events._set_running_loop(outer)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            sys.set_asyncgen_hooks(*hooks)

    def root(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """The workflow's first task, on the branch with the empty path."""
        context = contextvars.copy_context()
        context.run(BRANCH.set, Branch(""))
        with self.entered():
            return self._task(coroutine, None, context)

    def next_ordinal(self) -> int:
        """Counts futures and tasks; only for hashes."""
        self._ordinal += 1
        return self._ordinal

    # --- what asyncio asks of a loop ---------------------------------------------------------------------------------------
    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        """Queues a callback; only from inside, for whatever comes from outside must be an effect."""
        if not self._entered:
            if self._closed:
                return asyncio.Handle(callback, args, self, context)
            raise WorkflowError(
                "a future of a workflow was resolved from outside it (a tool, another loop or a callback): that would not be in "
                "the journal; return the value from the tool or from team.effect instead"
            )
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._outside.from_thread(handle)
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        handle._scheduled = True  # pyright: ignore[reportAttributeAccessIssue] - cancel() then tells the loop
        self._outside.timer(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._outside.timer_cancelled(handle)

    def resolve(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """Ends a future from outside, for the journal."""
        outer, self._entered = self._entered, True
        try:
            if future.done():
                return
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

    @property
    def has_generators(self) -> bool:
        """Whether the workflow began async generators."""
        return bool(self._generators)

    def run_now(self, handle: asyncio.Handle) -> None:
        """Queues a handle that the journal has let through."""
        self._ready.append(handle)

    def time(self) -> float:
        return self._outside.clock()

    def create_future(self) -> asyncio.Future[Any]:
        return EpisodeFuture(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None) -> Any:
        context = context or contextvars.copy_context()
        parent = context[BRANCH] if BRANCH in context else Branch("/detached")
        branch = parent.child(name, getattr(coro, "__qualname__", type(coro).__qualname__).rpartition(".")[2])
        context = context.copy()
        context.run(BRANCH.set, branch)
        return self._task(coro, name, context)

    def _task(self, coro: Any, name: str | None, context: contextvars.Context) -> asyncio.Task[Any]:
        task = EpisodeTask(coro, loop=self, name=name, context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

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

    async def shutdown_asyncgens(self) -> None:
        """Closes the async generators that the workflow began and left; at its end, so that the order is its own."""
        generators, self._generators[:] = list(self._generators), []
        for generator in generators:
            await generator.aclose()


_RAW = frozenset(
    [
        "add_reader",
        "remove_reader",
        "add_writer",
        "remove_writer",
        "sock_recv",
        "sock_recv_into",
        "sock_recvfrom",
        "sock_sendall",
        "sock_sendto",
        "sock_connect",
        "sock_accept",
        "sock_sendfile",
        "create_connection",
        "create_server",
        "create_unix_connection",
        "create_unix_server",
        "create_datagram_endpoint",
        "connect_accepted_socket",
        "start_tls",
        "sendfile",
        "connect_read_pipe",
        "connect_write_pipe",
        "subprocess_shell",
        "subprocess_exec",
        "getaddrinfo",
        "getnameinfo",
        "add_signal_handler",
        "remove_signal_handler",
    ]
)


def _refused(name: str) -> Callable[..., Any]:
    def method(self: EpisodeLoop, *args: Any, **kwargs: Any) -> Any:
        raise WorkflowError(
            f"the workflow's code uses loop.{name}: input and output outside the journal cannot be replayed; do it in a tool "
            f"or in `await team.effect(name, fn)`"
        )

    return method


for _name in _RAW:
    setattr(EpisodeLoop, _name, _refused(_name))


def _ignore(_: Any) -> None:
    """An abandoned async generator is closed at the episode's end, never when the collector happens to find it."""
