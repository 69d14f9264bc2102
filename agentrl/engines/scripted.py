"""`Scripted`: an engine whose policy is a Python function, text in and text out. For demonstrations and for tests."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from agentrl.engines.contract import (
    EngineInfo,
    GenerateRequest,
    Generation,
    Media,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
    check_ids,
)
from agentrl.engines.gate import Gate
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, Finish, IntArray, Version, VersionSpan, digest_ids, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError, boundary
from agentrl.rendering.contract import Renderer

UNCHECKED = 2**31 - 1


class Scripted:
    """`respond(prompt, rng)` gives the reply to a rendered prompt; its ids, and the renderer's first stop id, are the sample.

    The same prompt and seed give the same reply; a greedy request always gets the generator of seed 0. Log-probs are nan.
    A forced prefix that the reply begins with is part of it; after any other one `respond` goes on from the text that
    ends with it. `vocab_size` is only what ids are checked against. `publish` moves the version on and nothing else.
    """

    def __init__(
        self,
        respond: Callable[[str, random.Random], str],
        *,
        renderer: Renderer,
        policy: str = "policy",
        vocab_size: int = UNCHECKED,
        max_context: int = 1 << 20,
    ) -> None:
        self._respond = respond
        self._renderer = renderer
        self._policy = policy
        self._version = Version("scripted", policy, 0)
        self._gate = Gate()
        offers = Offers(scoring=False, deterministic=True)
        self._info = EngineInfo("scripted", vocab_size, max_context, offers)

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return

    @property
    def info(self) -> EngineInfo:
        """Offers everything but scoring."""
        return self._info

    def version(self, policy: str) -> Version:
        """The version published last."""
        if policy != self._policy:
            raise UserError(f"this script is policy {self._policy!r}, not {policy!r}")
        return self._version

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`. An error of the script leaves as an `EngineError`."""
        self.version(request.policy)
        if request.columns or any(isinstance(part, Media) for part in request.parts):
            raise UserError(f"request {request.id!r} asks for columns or has media; a script has neither")
        prompt = request.prompt
        check_ids(prompt, self._info.vocab_size, f"request {request.id!r}")
        check_ids(request.forced, self._info.vocab_size, f"request {request.id!r}, forced")
        room = min(request.sampling.max_tokens, self._info.max_context - len(prompt))
        if room < max(1, len(request.forced)):
            raise ContextOverflow(
                f"request {request.id!r}: {len(prompt)} tokens of prompt and {len(request.forced)} forced ones do not fit "
                f"into max_tokens={request.sampling.max_tokens} and a context of {self._info.max_context}"
            )
        if not await self._gate.enter(request.id):
            return Generation(EMPTY_IDS, EMPTY_LOGPROBS, (), "abort", digest_ids(prompt))
        with boundary(EngineError, f"request {request.id!r}: the script raised"):
            reply = self._reply(request, prompt)
        ids, finish, matched = _ended(reply, room, len(request.forced), (*request.sampling.stop_ids, *self._renderer.stop_ids))
        span, logprobs = VersionSpan(self._version, 0, len(ids)), np.full(len(ids), np.nan, np.float32)
        if request.on_tokens is not None:
            request.on_tokens(ids, logprobs)
        return Generation(ids, logprobs, (span,), finish, digest_ids(prompt, ids), matched=matched)

    def _reply(self, request: GenerateRequest, prompt: IntArray) -> IntArray:
        """All ids of the reply, forced ones included, with its stop id."""
        sampling, forced = request.sampling, request.forced
        greedy = sampling.temperature == 0 or sampling.top_k == 1
        seed = 0 if greedy else request.seed
        reply = self._encoded(self._respond(self._renderer.decode(prompt), random.Random(seed)))
        if np.array_equal(reply[: len(forced)], forced):
            return reply
        after = self._renderer.decode(np.concatenate([prompt, forced]))
        return np.concatenate([forced, self._encoded(self._respond(after, random.Random(seed)))])

    def _encoded(self, text: str) -> IntArray:
        return np.append(self._renderer.encode(text), self._renderer.stop_ids[:1]).astype(np.int32)

    async def score(self, request: ScoreRequest) -> Scores:
        """A script has no log-probs."""
        raise UserError(f"score request {request.id!r}: a scripted engine cannot score (info.offers.scoring is False)")

    async def abort(self, request_id: str) -> None:
        """Only a request that waits can be aborted; the others are answered at once."""
        self._gate.abort(request_id)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """See `Engine.pause`."""
        del mode
        self._gate.close()

    async def resume(self) -> None:
        """See `Engine.resume`."""
        self._gate.open()

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """A script has no weights: only the version moves on."""
        del weights
        self.version(policy)
        self._version = version


def _ended(reply: IntArray, room: int, forced: int, stop_ids: tuple[int, ...]) -> tuple[IntArray, Finish, int | None]:
    """The reply up to its first stop id after the forced part, or to where it runs out of room."""
    at = np.flatnonzero(np.isin(reply[forced:room], stop_ids))
    if len(at):
        end = forced + int(at[0]) + 1
        return token_ids(reply[:end]), "stop", int(reply[end - 1])
    finish: Finish = "length" if len(reply) >= room else "stop"
    return token_ids(reply[:room]), finish, None
