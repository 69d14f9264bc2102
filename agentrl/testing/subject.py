"""The engine under test, and what the checks need of it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agentrl.engines.contract import Engine, GenerateRequest, Generation, ScoreRequest, Weights
from agentrl.episode import EMPTY_IDS, FloatArray, IntArray, Sampling, Version, token_ids
from agentrl.errors import AgentRLError, EngineError, UserError
from agentrl.testing.claims import ClaimBroken, require

LONG_S, LONGEST_S = 0.4, 0.6
"""What a request should last that is interrupted, if the context allows; and from where on it is made no longer."""
TOO_FAST_S = 0.02
"""Nobody can interrupt a request that is shorter."""
ROW_LIMIT = 1024
"""Up to this vocabulary the whole distribution at one position is scored, token by token."""

Act: TypeAlias = Callable[[str], Awaitable[None]]


async def refused(call: Awaitable[Any], what: str, kinds: tuple[type[AgentRLError], ...] = (UserError, EngineError)) -> None:
    """The call must raise one of these, with a message that says something."""
    try:
        await call
    except kinds as error:
        require(len(str(error)) > 10, f"{what} was refused with the message {str(error)!r}, which tells nothing")
        return
    raise ClaimBroken(f"{what} was not refused; expected {' or '.join(kind.__name__ for kind in kinds)}")


@dataclass(slots=True)
class Subject:
    """`weights(n)` gives weights that differ from those of every other n; None = publishing is not checked."""

    engine: Engine
    policy: str
    atol: float
    weights: Callable[[int], Weights] | None
    others: tuple[str, ...] = ()
    """Further policies that are adapters of the same base."""
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))
    _long: tuple[int, float] = (0, 0.0)

    @property
    def vocab_size(self) -> int:
        """Of the engine."""
        return self.engine.info.vocab_size

    def prompt(self, salt: int = 0, length: int = 8) -> IntArray:
        """Ids drawn over the whole vocabulary."""
        return token_ids(np.random.default_rng(salt).integers(0, self.vocab_size, length))

    def request(
        self, prompt: IntArray, sampling: Sampling, *, seed: int = 0, forced: IntArray = EMPTY_IDS, **more: Any
    ) -> GenerateRequest:
        """With an id of its own."""
        policy = more.pop("policy", self.policy)
        return GenerateRequest(f"check-{self.nonce}-{next(self.numbers)}", policy, (prompt,), sampling, seed, forced, **more)

    async def generate(
        self, prompt: IntArray, sampling: Sampling, *, seed: int = 0, forced: IntArray = EMPTY_IDS, **more: Any
    ) -> Generation:
        """One reply."""
        return await self.engine.generate(self.request(prompt, sampling, seed=seed, forced=forced, **more))

    async def score(self, ids: IntArray, start: int = 1, policy: str | None = None) -> FloatArray:
        """Log-probs of `ids[start:]`."""
        request = ScoreRequest(f"check-{self.nonce}-{next(self.numbers)}", policy or self.policy, ids, start)
        return (await self.engine.score(request)).logprobs

    async def all_of(self, calls: Sequence[Awaitable[Any]]) -> list[Any]:
        """All at once."""

        async def one(call: Awaitable[Any]) -> Any:
            return await call

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
        return [task.result() for task in tasks]

    async def row(self, prompt: IntArray) -> npt.NDArray[np.float64] | None:
        """Log-probs of every token after `prompt`, at temperature 1; None where they cannot be had."""
        if not self.engine.info.offers.scoring or self.vocab_size > ROW_LIMIT:
            return None
        calls = [self.score(np.append(prompt, token).astype(np.int32), len(prompt)) for token in range(self.vocab_size)]
        return np.array([scores[0] for scores in await self.all_of(calls)], np.float64)

    async def long(self) -> tuple[Sampling, float]:
        """Sampling for a request that lasts, and how many seconds it took when it was measured."""
        tokens, seconds = self._long
        if not tokens:
            tokens = min(32, self._room)
            seconds = await self._measured(tokens)
            tokens = min(self._room, max(32, int(LONG_S * tokens / max(seconds, 1e-6))))
            seconds = await self._measured(tokens)
        return Sampling(max_tokens=tokens), seconds

    async def longer(self) -> None:
        """After a request that ended too early: measured anew; if it was short, with twice as many tokens, if there is room.

        A machine that was busy at the first measure would else make the engine out to be slow.
        """
        tokens, seconds = self._long
        if seconds < LONGEST_S or tokens == self._room:
            await self._measured(min(self._room, 2 * tokens))

    @property
    def _room(self) -> int:
        return self.engine.info.max_context - 9

    async def _measured(self, tokens: int) -> float:
        started = asyncio.get_running_loop().time()
        await self.generate(self.prompt(), Sampling(max_tokens=tokens))
        seconds = asyncio.get_running_loop().time() - started
        self._long = tokens, seconds
        return seconds

    async def caught(self, act: Act, wanted: Callable[[Generation], bool], told: Callable[[Generation], object]) -> Generation:
        """The reply to a long request that was acted on in mid-flight. Breaks the claim when no reply is `wanted`.

        Tried earlier and earlier with longer and longer requests, and where the engine streams at the first piece. An engine
        that is done before anybody can act is let off with its last reply: one whose longest request takes no longer than
        four times what the act takes on an engine at rest.
        """
        replies: list[Generation] = []
        streams = self.engine.info.offers.streaming
        for part in 2 * (0.5, 0.3, None, 0.1, None, 0.0):  # again, as a busy machine may have been late each time
            sampling, seconds = await self.long()
            after = None if part is None and streams else seconds * (part or 0.0)
            replies.append(await self._acted_on(act, sampling, after))
            if wanted(replies[-1]):
                return replies[-1]
            await self.longer()
        started = asyncio.get_running_loop().time()
        await act("no-such-request")
        alone = asyncio.get_running_loop().time() - started
        too_fast = self._long[1] < max(TOO_FAST_S, 4 * alone)
        require(too_fast, f"{len(replies)} requests were acted on in mid-flight, and gave {[told(reply) for reply in replies]}")
        return replies[-1]

    async def _acted_on(self, act: Act, sampling: Sampling, after: float | None) -> Generation:
        """`after` seconds; None = when the first piece has come."""
        began = asyncio.Event()

        def listen(ids: IntArray, logprobs: FloatArray) -> None:
            began.set()

        request = replace(self.request(self.prompt(), sampling), on_tokens=listen if after is None else None)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.engine.generate(request))
            task.add_done_callback(lambda _: began.set())
            await (began.wait() if after is None else asyncio.sleep(after))
            await act(request.id)
        return task.result()

    async def interrupted(self, request: GenerateRequest, seconds: float) -> Generation:
        """The reply to a request that is aborted after so long, if it still runs."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.engine.generate(request))
            await asyncio.sleep(seconds)
            await self.engine.abort(request.id)
        return task.result()

    async def next_version(self, policy: str | None = None) -> tuple[Weights, Version]:
        """Weights not served before, under a version not used before."""
        number = next(self.numbers)
        weights = self.weights(number) if self.weights is not None else {}
        return weights, Version(f"check-{self.nonce}", policy or self.policy, number, f"{number:08x}")
