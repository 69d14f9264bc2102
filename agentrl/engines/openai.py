"""`OpenAIEngine`: any endpoint of the chat completions API, for evaluation and frozen roles. Messages in, text out.

Its prompts are the lines of `ChatRenderer`. It has no token ids and takes no weights, so nothing that it serves is trained.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

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
)
from agentrl.engines.gate import Gate
from agentrl.engines.http import Body, Refused, Transport
from agentrl.engines.replies import no_tokens
from agentrl.episode import EMPTY_MAP, Finish, Version, VersionSpan, digest_ids
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.rendering.chat import read_prompt, reply_ids

log = logging.getLogger(__name__)

CHAT = "/chat/completions"
UNBOUNDED = 1 << 40
"""An endpoint does not tell its context; it refuses what does not fit."""
TOO_LONG = ("context length", "context window", "context_length", "too long")
SEED_MASK = (1 << 31) - 1
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
FINISHES: Mapping[str, Finish] = {"stop": "stop", "tool_calls": "stop", "content_filter": "stop", "length": "length"}


class _Busy(EngineError):
    """Not now; `after` is how many seconds the endpoint asks to wait, where it does."""

    def __init__(self, message: str, after: float | None) -> None:
        super().__init__(message, retryable=True)
        self.after = after


class OpenAIEngine:
    """One model of one endpoint, under the names of the policies that it serves; `base_url` ends in `/v1` as a rule.

    `seconds` bounds a request with all its tries: one that was refused with 429 or 5xx, or broke off, is sent again after as
    long as the endpoint asks for (`Retry-After`), or after growing waits. `extra` are further fields of the body, and None
    leaves one out ({"seed": None}); `limit` is the field for the most tokens ("max_completion_tokens" for some). The number of
    tokens that the endpoint counts comes as `costs`. While the engine is paused requests wait, and replies are held back.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        policies: Sequence[str] = ("policy",),
        api_key: str = "",
        seconds: float = 600.0,
        connect_s: float = 10.0,
        limit: str = "max_tokens",
        extra: Mapping[str, Any] = EMPTY_MAP,
    ) -> None:
        if not model:
            raise UserError("an endpoint serves many models; name one, such as OpenAI(url=..., model='gpt-4.1-mini')")
        self._http = Transport(f"the endpoint of {model}", base_url, connect_s=connect_s, api_key=api_key)
        self._name, self._model, self._policies = self._http.name, model, tuple(policies)
        self._seconds, self._limit, self._extra = seconds, limit, dict(extra)
        self._gate = Gate()
        self._running: dict[str, asyncio.Timeout] = {}
        offers = Offers(token_ids=False, forced_prefix=False, scoring=False, swap_in_flight=False)
        self._info = EngineInfo(f"openai {model}", 256, UNBOUNDED, offers)

    async def __aenter__(self) -> OpenAIEngine:
        await self._http.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.close()

    @property
    def info(self) -> EngineInfo:
        """Ids are bytes of messages, and the context is not known."""
        return self._info

    def version(self, policy: str) -> Version:
        """Always step 0 of lineage `openai`, with the model's name as digest."""
        if policy not in self._policies:
            raise UserError(f"{self._name} serves {', '.join(map(repr, self._policies))}, not policy {policy!r}")
        return Version("openai", policy, 0, self._model)

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`. The ids are the bytes of the reply's message, the log-probs nan."""
        body = self._body(request)
        if request.id in self._running:
            raise UserError(f"request id {request.id!r} is already running; give every request an id of its own")
        if not await self._gate.enter(request.id):
            return _nothing(request)
        cut = self._running[request.id] = asyncio.timeout(None)
        try:
            async with cut:
                reply = await self._tried(body)
                if not await self._gate.enter(request.id):
                    return _nothing(request)
        except TimeoutError:
            if not cut.expired():
                raise
            return _nothing(request)
        finally:
            del self._running[request.id]
        generation = self._read(request, reply)
        if request.on_tokens is not None:
            request.on_tokens(generation.ids, generation.logprobs)
        return generation

    async def _tried(self, body: Body) -> Any:
        """The reply of the first try that got one."""
        now = asyncio.get_running_loop().time
        end, wait = now() + self._seconds, FIRST_WAIT_S
        while True:
            try:
                return await self._ask(body, end)
            except EngineError as error:
                asked = error.after if isinstance(error, _Busy) else None
                pause = wait * random.uniform(0.5, 1.0) if asked is None else asked
                if not error.retryable or now() + pause >= end:
                    raise
                log.info("%s; asking again in %.1f s", error, pause)
            await asyncio.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)

    async def _ask(self, body: Body, end: float) -> Any:
        """The parsed reply, or why there is none."""
        http = self._http
        reply = await http.reply("POST", CHAT, body, deadline=asyncio.timeout_at(end), seconds=self._seconds)
        if reply.status in (401, 403):  # its own words may hold parts of the key
            raise EngineError(
                f"{self._name}: it refused the key ({reply.status}); check the environment variable that key_env names"
            )
        if reply.status == 429 and b"insufficient_quota" in reply.body:
            raise EngineError(f"{self._name}: the account's quota is used up (429); waiting would not help")
        try:
            return http.parsed("POST", CHAT, reply)
        except Refused as error:
            if reply.status == 429 or reply.status >= 500:
                raise _Busy(str(error), _seconds_of(reply.headers.get(b"retry-after", b"").decode("latin-1"))) from error
            if any(part in error.reason for part in TOO_LONG):
                raise ContextOverflow(str(error)) from error
            raise

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        """The request in the endpoint's form; refuses what that form cannot say."""
        self.version(request.policy)
        what, sampling = f"request {request.id!r}", request.sampling
        if request.columns or len(request.forced) or any(isinstance(part, Media) for part in request.parts):
            raise UserError(f"{what} has columns, a forced prefix or media; {self._name} takes none of them (info.offers)")
        if sampling.top_k > 0 or sampling.stop_ids:
            raise UserError(
                f"{what} has top_k={sampling.top_k} and stop_ids={sampling.stop_ids}, which chat completions do not know; "
                "leave them out, or pass extra={'top_k': ...} to an endpoint that takes it"
            )
        messages, tools = read_prompt(request.prompt)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            self._limit: sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & SEED_MASK,
            "stop": list(sampling.stop) or None,
            "tools": tools or None,
            **self._extra,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, request: GenerateRequest, reply: Any) -> Generation:
        try:
            choice = reply["choices"][0]
            message, reason = choice["message"], choice["finish_reason"]
            content = message.get("content") or message.get("refusal") or ""
            calls = [_call(call, at) for at, call in enumerate(message.get("tool_calls") or ())]
            usage = reply.get("usage")
            counted = {"prompt_tokens": 0, "completion_tokens": 0} | (usage or {})
            costs = {f"{request.policy}/{name}": float(counted[name]) for name in ("prompt_tokens", "completion_tokens")}
        except (KeyError, TypeError, IndexError) as error:
            raise EngineError(f"{self._name}: POST {CHAT}: the reply lacks {error}; is this a chat completions API?") from error
        if reason not in FINISHES:
            raise EngineError(f"{self._name}: POST {CHAT} ended with the unknown finish reason {reason!r}")
        ids = reply_ids(content, calls)
        return Generation(
            ids, np.full(len(ids), np.nan, np.float32), (VersionSpan(self.version(request.policy), 0, len(ids)),),
            FINISHES[reason], digest_ids(request.prompt, ids), text=json.dumps(calls) if calls and not content else content,
            costs=costs if usage else EMPTY_MAP,
        )  # fmt: skip

    async def score(self, request: ScoreRequest) -> Scores:
        """An endpoint has no log-probs of given tokens."""
        raise UserError(f"score request {request.id!r}: {self._name} cannot score (info.offers.scoring is False)")

    async def abort(self, request_id: str) -> None:
        """The request ends without a reply."""
        if not self._gate.abort(request_id) and request_id in self._running:
            self._running[request_id].reschedule(asyncio.get_running_loop().time())

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """Requests wait; those that the endpoint has go on there, and their replies are held back; "abort" ends them."""
        self._gate.close()
        if mode == "abort":
            for request_id in list(self._running):
                await self.abort(request_id)

    async def resume(self) -> None:
        """See `Engine.resume`."""
        self._gate.open()

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """Nobody can give an endpoint weights."""
        del weights, version
        self.version(policy)
        raise UserError(f"policy {policy!r} is served by {self._name}, which takes no weights; freeze it: Policy(frozen=True)")


def _nothing(request: GenerateRequest) -> Generation:
    return replace(no_tokens(request.prompt), text="")


def _call(call: Mapping[str, Any], at: int) -> dict[str, Any]:
    """A tool call as the next request will say it; some endpoints give no id, some the arguments as an object."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    given = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call.get("id") or f"call_{at}", "type": "function", "function": {"name": name, "arguments": given}}


def _seconds_of(text: str) -> float | None:
    """A `Retry-After` header: seconds, or a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
