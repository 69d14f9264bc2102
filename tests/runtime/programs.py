"""Random workflows: a small language of everything that asyncio code does, and its interpreter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from hypothesis import strategies as st

from agentrl.errors import describe
from agentrl.team import Team

Node = tuple[Any, ...]


class Bench:
    """The effects of one run. What they give, whether they fail and when they end is random: only the record knows."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.calls = 0

    async def act(self, at: str, behaviour: str) -> Any:
        self.calls += 1
        for _ in range(self.rng.randrange(5)):
            await asyncio.sleep(0)
        if behaviour == "slow":
            await asyncio.sleep(self.rng.choice((0.001, 0.004)))
        return self.end(at, behaviour)

    def act_sync(self, at: str, behaviour: str) -> Any:
        self.calls += 1
        return self.end(at, behaviour)

    def end(self, at: str, behaviour: str) -> Any:
        if behaviour == "fail" or (behaviour == "flaky" and self.rng.random() < 0.5):
            raise self.rng.choice((ValueError, LookupError, ConnectionError))(f"{at} failed")
        return [at, self.rng.randrange(1000)]


class Interpreter:
    """Runs one program. The trace is the order in which its parts ended, over all branches."""

    def __init__(self, team: Team, bench: Bench) -> None:
        self.team = team
        self.bench = bench
        self.trace: list[Any] = []

    async def run(self, node: Node, at: str) -> Any:
        value = await getattr(self, node[0])(at, *node[1:])
        self.trace.append([at, value if isinstance(value, int | float | str) else None])
        return value

    def begin(self, node: Node, at: str, name: str | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.run(node, at), name=name)

    async def effect(self, at: str, behaviour: str = "ok", kind: str = "async") -> Any:
        function = self.bench.act if kind == "async" else self.bench.act_sync
        return await self.team.effect(f"act {kind}", function, at, behaviour)

    async def seq(self, at: str, *nodes: Node) -> Any:
        return [await self.run(node, f"{at}.{i}") for i, node in enumerate(nodes)]

    async def group(self, at: str, named: bool, *nodes: Node) -> Any:
        async with asyncio.TaskGroup() as tasks:
            began = [
                tasks.create_task(self.run(node, f"{at}.{i}"), name=f"part {i % 2}" if named else None)
                for i, node in enumerate(nodes)
            ]
        return [task.result() for task in began]

    async def gather(self, at: str, keep: bool, *nodes: Node) -> Any:
        parts = (self.run(node, f"{at}.{i}") for i, node in enumerate(nodes))
        given = await asyncio.gather(*parts, return_exceptions=keep)
        return [describe(part) if isinstance(part, BaseException) else part for part in given]

    async def completed(self, at: str, bare: bool, *nodes: Node) -> Any:
        parts: list[Any] = [self.run(node, f"{at}.{i}") for i, node in enumerate(nodes)]
        given = []
        for part in asyncio.as_completed(parts if bare else [asyncio.create_task(part) for part in parts]):
            try:
                given.append(await part)
            except (ValueError, LookupError, ConnectionError, RuntimeError, ExceptionGroup) as error:
                given.append(describe(error))
        return given

    async def race(self, at: str, *nodes: Node) -> Any:
        tasks = [self.begin(node, f"{at}.{i}") for i, node in enumerate(nodes)]
        done, losers = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in losers:
            task.cancel()
        if losers:
            await asyncio.wait(losers)
        return [tasks.index(task) for task in done], [tasks.index(task) for task in losers], len(self.trace)

    async def timeout(self, at: str, seconds: float, style: str, node: Node) -> Any:
        try:
            if style == "wait_for":
                return await asyncio.wait_for(self.run(node, f"{at}.0"), seconds)
            async with asyncio.timeout(seconds):
                return await self.run(node, f"{at}.0")
        except TimeoutError:
            return "timeout"

    async def sleep(self, at: str, seconds: float) -> Any:
        await asyncio.sleep(seconds)
        return round(self.team.now(), 9)

    async def retry(self, at: str, times: int) -> Any:
        for attempt in range(times):
            try:
                return await self.effect(at, "flaky")
            except (ValueError, LookupError, ConnectionError):
                if attempt + 1 == times:
                    raise
        return None

    async def shield(self, at: str, node: Node) -> Any:
        task = self.begin(node, f"{at}.0")
        try:
            async with asyncio.timeout(0.001):
                return await asyncio.shield(task)
        except TimeoutError:
            return [await task]

    async def queue(self, at: str, workers: int, *nodes: Node) -> Any:
        queue: asyncio.Queue[tuple[str, Node]] = asyncio.Queue()
        given: list[Any] = []

        async def work() -> None:
            while True:
                place, node = await queue.get()
                try:
                    given.append(await self.run(node, place))
                except (ValueError, LookupError, ConnectionError, RuntimeError, ExceptionGroup) as error:
                    given.append(describe(error))
                finally:
                    queue.task_done()

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        for i, node in enumerate(nodes):
            queue.put_nowait((f"{at}.{i}", node))
        await queue.join()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return given

    async def event(self, at: str, first: Node, then: Node) -> Any:
        event = asyncio.Event()

        async def wait() -> Any:
            await event.wait()
            return await self.run(then, f"{at}.1")

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(wait())
            try:
                given = await self.run(first, f"{at}.0")
            finally:
                event.set()
        return [given, waiting.result()]

    async def guarded(self, at: str, room: int, *nodes: Node) -> Any:
        guard = asyncio.Semaphore(room) if room else asyncio.Condition()

        async def one(i: int, node: Node) -> Any:
            async with guard:
                return await self.run(node, f"{at}.{i}")

        given = await asyncio.gather(*(one(i, node) for i, node in enumerate(nodes)), return_exceptions=True)
        return [describe(part) if isinstance(part, BaseException) else part for part in given]

    async def generator(self, at: str, stop: int, closes: bool, *nodes: Node) -> Any:
        async def parts() -> AsyncIterator[Any]:
            try:
                for i, node in enumerate(nodes):
                    yield await self.run(node, f"{at}.{i}")
            finally:
                self.trace.append(f"{at} closed")
                await self.effect(f"{at}.closed")

        given = []
        if closes:
            async with aclosing(parts()) as iterator:
                async for part in iterator:
                    given.append(part)
                    if len(given) >= stop:
                        break
        else:
            async for part in parts():
                given.append(part)
                if len(given) >= stop:
                    break  # abandoned
        return given

    async def thread(self, at: str, executor: bool) -> Any:
        if executor:
            return await asyncio.get_running_loop().run_in_executor(None, len, at)
        return await asyncio.to_thread(sum, range(len(at)))

    async def threadsafe(self, at: str) -> Any:
        loop = asyncio.get_running_loop()

        def begin(part: str, behaviour: str) -> Any:
            effect = self.effect(f"{at}.{part}", behaviour)
            try:
                return asyncio.run_coroutine_threadsafe(effect, loop)
            except RuntimeError:  # nobody waits for this thread any more
                effect.close()
                raise

        def inside() -> Any:
            one, two = begin("a", "ok"), begin("b", "slow")
            return [two.result(5), one.result(5)]

        return await asyncio.to_thread(inside)

    async def reward(self, at: str, value: float) -> Any:
        self.team.reward(value, name=at)
        return value

    async def draw(self, at: str) -> Any:
        return self.team.random(at).randrange(10**6)

    async def ending(self, at: str, node: Node, cleanup: Node) -> Any:
        try:
            return await self.run(node, f"{at}.0")
        finally:
            await self.run(cleanup, f"{at}.1")

    async def catch(self, at: str, node: Node) -> Any:
        try:
            return await self.run(node, f"{at}.0")
        except (ValueError, LookupError, ConnectionError, RuntimeError, ExceptionGroup) as error:
            return describe(error)

    async def cancel(self, at: str, after: Node, node: Node) -> Any:
        task = self.begin(node, f"{at}.0", name="cancelled")
        try:
            await self.run(after, f"{at}.1")
        finally:
            task.cancel()
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else describe(task.exception()) if task.exception() else task.result()

    async def left(self, at: str, node: Node) -> Any:
        self.begin(node, f"{at}.0", name="left")  # nobody waits for it
        return await self.effect(at)

    async def callback(self, at: str, later: bool) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        set_it: Callable[[], Any] = lambda: future.done() or future.set_result(at)  # noqa: E731
        if later:
            loop.call_later(0.001, set_it)
        else:
            loop.call_soon(set_it)
        return await future

    async def swallow(self, at: str, node: Node) -> Any:
        try:
            return await self.run(node, f"{at}.0")
        except asyncio.CancelledError:
            await self.effect(f"{at}.last")
            raise


def workflow(program: Node, bench: Bench) -> Callable[[Any, Team], Any]:
    """The program as a workflow: it gives its value and its trace."""

    async def run(task: Any, team: Team) -> Any:
        interpreter = Interpreter(team, bench)
        return [await interpreter.run(program, "r"), interpreter.trace]

    return run


SECONDS = st.sampled_from([0.0005, 0.001, 0.003])
LEAVES = st.one_of(
    st.tuples(st.just("effect"), st.sampled_from(["ok", "ok", "slow", "flaky", "fail"]), st.sampled_from(["async", "sync"])),
    st.tuples(st.just("effect"), st.sampled_from(["ok", "slow"]), st.just("async")),
    st.tuples(st.just("sleep"), SECONDS),
    st.tuples(st.just("retry"), st.integers(1, 4)),
    st.tuples(st.just("thread"), st.booleans()),
    st.tuples(st.just("threadsafe")),
    st.tuples(st.just("reward"), st.sampled_from([0.0, 0.5, 1.0])),
    st.tuples(st.just("draw")),
    st.tuples(st.just("callback"), st.booleans()),
)


def _inner(child: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def made(kind: str, *fixed: st.SearchStrategy[Any], least: int = 1, most: int = 3) -> st.SearchStrategy[Node]:
        parts = st.lists(child, min_size=least, max_size=most)
        return st.tuples(st.tuples(*fixed), parts).map(lambda given: (kind, *given[0], *given[1]))

    return st.one_of(
        made("seq", most=4),
        made("group", st.booleans(), least=2),
        made("gather", st.booleans(), least=2),
        made("completed", st.booleans(), least=2),
        made("race", least=2),
        made("timeout", SECONDS, st.sampled_from(["timeout", "wait_for"]), most=1),
        made("shield", most=1),
        made("queue", st.integers(1, 3)),
        made("event", least=2, most=2),
        made("guarded", st.integers(0, 2), least=2),
        made("generator", st.integers(1, 3), st.booleans()),
        made("ending", least=2, most=2),
        made("catch", most=1),
        made("cancel", least=2, most=2),
        made("left", most=1),
        made("swallow", most=1),
    )


PROGRAMS: st.SearchStrategy[Node] = st.recursive(LEAVES, _inner, max_leaves=14)
