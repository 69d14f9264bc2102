"""The one thread in which torch runs: it takes commands between steps, steps while there is work, sleeps otherwise.

Filled by the event loop (`send`), drained here; replies collect during a step and cross to the loop in one call. If
anything fails the thread answers every request with the cause and refuses later ones.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from agentrl.engines.contract import PauseMode
from agentrl.engines.local.jobs import Abort, Command, Job, Pause, Publish, Reply, Resume, Stop
from agentrl.engines.local.lane import Lane
from agentrl.errors import AgentRLError, EngineError, UserError, boundary, describe
from agentrl.transformer.weights import load_weights

log = logging.getLogger(__name__)


class Worker:
    """Runs lanes by policy. `start` gives a future of the lanes once they are loaded."""

    def __init__(self, load: Callable[[], Mapping[str, Lane]], threads: int | None, loop: asyncio.AbstractEventLoop) -> None:
        self.lanes: Mapping[str, Lane] = {}
        self.failure: str | None = None
        self._load = load
        self._threads = threads
        self._loop = loop
        self._inbox: deque[Command] = deque()
        self._wake = threading.Event()
        self._outbox: list[tuple[asyncio.Future[Any], Any]] = []
        self._paused = False
        self._open: dict[int, Reply] = {}
        self._thread = threading.Thread(target=self._main, name="agentrl-local-engine", daemon=True)
        self._loaded: asyncio.Future[Any] = loop.create_future()
        self._ended: asyncio.Future[Any] = loop.create_future()

    async def start(self) -> None:
        """Loads the models in the thread; raises what the loading raised."""
        self._thread.start()
        loaded = False
        try:
            await self._loaded
            loaded = True
        finally:
            if not loaded:
                await self.stop()

    async def stop(self) -> None:
        """Ends the thread; requests that still run fail. Waits for the step in progress, even when cancelled."""
        self.send(Stop())
        await asyncio.shield(self._ended)
        self._thread.join()

    def send(self, command: Command) -> None:
        """Hands over a command; from the loop's thread."""
        self._inbox.append(command)
        self._wake.set()

    def reply_to(self, future: asyncio.Future[Any]) -> Reply:
        """A reply that settles the future in its loop, together with all others of the step."""

        def reply(result: Any) -> None:
            self._outbox.append((future, result))

        return reply

    # in the thread

    def _main(self) -> None:
        why = "it was closed"
        try:
            with torch.inference_mode():
                torch.set_num_threads(self._threads or torch.get_num_threads())  # fixed: bits may depend on it
                with boundary(EngineError, "loading"):
                    self.lanes = self._load()
                self.reply_to(self._loaded)(None)
                with boundary(EngineError, "in a step"):
                    self._run()
        except AgentRLError as error:
            why = describe(error)
            self.reply_to(self._loaded)(error)  # unless it is settled already
            if isinstance(error, EngineError):
                log.exception("the local engine failed")
        finally:
            self._fail(f"the local engine failed: {why}")
            self.lanes = {}
            self.reply_to(self._ended)(None)
            self._flush()

    def _run(self) -> None:
        while self._take():
            busy = False
            if not self._paused:
                for lane in self.lanes.values():
                    if lane.busy:
                        lane.step()
                        busy = True
            self._flush()
            if not busy and not self._inbox:
                self._wake.wait()
                self._wake.clear()

    def _take(self) -> bool:
        """Carries out all commands that have arrived; false: stop."""
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Stop):
                return False
            self._obey(command)
        return True

    def _obey(self, command: Command) -> None:
        if isinstance(command, Job):
            self._accept(command)
        elif isinstance(command, Abort):
            self.lanes[command.policy].abort(command.key)
        elif isinstance(command, Pause):
            self._pause(command.mode)
            command.reply(None)
        elif isinstance(command, Resume):
            self._paused = False
            command.reply(None)
        elif isinstance(command, Publish):
            self._publish(command)

    def _accept(self, job: Job) -> None:
        reply = job.reply

        def settle(result: Any) -> None:
            del self._open[job.key]
            reply(result)

        self._open[job.key] = reply
        job.reply = settle
        self.lanes[job.request.policy].waiting.append(job)

    def _pause(self, mode: PauseMode) -> None:
        self._paused = True
        for lane in self.lanes.values():
            if mode == "abort":
                lane.abort_all()
            elif mode == "retract":
                lane.retract()

    def _publish(self, command: Publish) -> None:
        """Checks and copies the weights, then swaps them; refused ones leave the old in place."""
        lane = self.lanes[command.policy]
        try:
            given = command.weights
            tensors = load_weights(given["path"]) if "path" in given else given
            lane.publish(lane.decoder.read(tensors, f"weights for policy {command.policy!r}"), command.version)
            command.reply(None)
        except UserError as error:
            command.reply(error)

    def _fail(self, why: str) -> None:
        """Answers everything that is open, now and from now on."""
        self.failure = why
        for reply in list(self._open.values()):
            reply(EngineError(why))
        self._open.clear()
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, Job | Pause | Resume | Publish):
                command.reply(EngineError(why))
        self._flush()

    def _flush(self) -> None:
        if self._outbox:
            batch, self._outbox = self._outbox, []
            self._loop.call_soon_threadsafe(_settle, batch)


def _settle(batch: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in batch:
        if future.done():
            continue  # its caller was cancelled
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
