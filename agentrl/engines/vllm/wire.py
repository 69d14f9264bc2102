"""The bodies of vLLM's token-in, token-out API: requests as it takes them, replies as it gives them. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agentrl.effect import derive_seed
from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest
from agentrl.engines.replies import is_greedy, told_version
from agentrl.episode import (
    EMPTY_IDS,
    Finish,
    FloatArray,
    IntArray,
    Sampling,
    Version,
    VersionSpan,
    digest_ids,
    token_ids,
)
from agentrl.errors import EngineAborted, EngineError

GENERATE = "/inference/v1/generate"
NAMED = "generate-tokens-"
"""The server aborts a request of this route by its own id behind these words, and by nothing else."""
NO_NUMBER = -9999.0
"""What the server writes for a log-prob of minus infinity or nan, neither of which JSON has."""


def forced_exactly(sampling: Sampling) -> bool:
    """Whether the log-probs that the server has of given tokens, at temperature 1, are those of this sampling."""
    return is_greedy(sampling) or sampling.temperature == 1


def generate_body(
    request: GenerateRequest,
    prompt: IntArray,
    max_new: int,
    model: str,
    cache_key: str,
    *,
    with_forced: bool,
    seeds: bool = True,
) -> dict[str, Any]:
    """Prompt and forced prefix go as input ids; `with_forced` asks for the log-probs of the latter. The model's own end-of-text
    ends nothing: stop ids do.

    The server cannot sample no token, so a reply whose tokens are all forced draws one, which `read_generation` drops.
    Its random numbers begin anew behind a forced prefix; a seed of its own for every length of it keeps them from being
    those that drew the prefix. `seeds=False` sends none.
    """
    sampling = request.sampling
    params: dict[str, Any] = {
        "temperature": 0.0 if is_greedy(sampling) else sampling.temperature,
        "max_tokens": max(1, max_new),
        "logprobs": 0,
        "ignore_eos": True,
        "seed": derive_seed(request.seed, len(request.forced)) if len(request.forced) else request.seed,
        "stop_token_ids": list(sampling.stop_ids),
        "stop": list(sampling.stop),
        "detokenize": bool(sampling.stop),
    }
    if not is_greedy(sampling):
        params |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
    if with_forced:
        params["prompt_logprobs"] = 0
    if not seeds:
        del params["seed"]
    return {
        "model": model,
        "token_ids": np.concatenate([prompt, request.forced]),
        "sampling_params": params,
        "return_token_ids": True,
        "cache_salt": cache_key,
    }


def score_body(request: ScoreRequest, model: str, cache_key: str) -> dict[str, Any]:
    """The prompt's own log-probs, at temperature 1; one token is sampled and thrown away."""
    params = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "ignore_eos": True}
    ids = token_ids(request.ids)
    return {"model": model, "token_ids": ids, "sampling_params": params, "return_token_ids": True, "cache_salt": cache_key}


@dataclass(slots=True)
class Versions:
    """The server's weight versions (strings) as ours, and which of them came while the KV of running requests was dropped."""

    policy: str
    recomputed: set[str] = field(default_factory=set[str])

    def of(self, text: str) -> Version:
        """See `told_version`."""
        return told_version(self.policy, text)

    def spans(self, recorded: Sequence[Mapping[str, Any]], forced: int, length: int) -> tuple[VersionSpan, ...]:
        """The server's spans count sampled tokens; forced ones stand before them and belong to the first.

        What reaches beyond the reply's `length` is of the token that was drawn only because one must be.
        """
        spans: list[VersionSpan] = []
        for span in recorded:
            start, end = (int(span["start"]) + forced if spans else 0), min(int(span["end"]) + forced, length)
            if end > start:
                again = bool(spans) and span["version"] in self.recomputed
                spans.append(VersionSpan(self.of(span["version"]), start, end, "recomputed" if again else "kept"))
        return tuple(spans)


def read_generation(
    request: GenerateRequest,
    prompt_length: int,
    reply: Any,
    versions: Versions | None,
    now: Version,
    server: str,
    given: FloatArray | None = None,
) -> Generation:
    """A reply of the generate route. The digest is of what the server says it saw and gave, never of what was asked.

    `versions=None`: all of it is of version `now`, for an adapter stays with its request. `given`: the log-probs of the forced
    tokens, where the reply does not tell them.

    The log-probs of forced tokens are those of the input, at temperature 1; at another temperature they are nan (forced
    tokens are never trained). Those of drawn tokens are of what was drawn from: with top-k or top-p, after the mask.
    """
    sampling = request.sampling
    try:
        choice = reply["choices"][0]
        finish, matched = read_finish(choice, server)
        seen, sampled = token_ids(reply["prompt_token_ids"]), token_ids(choice["token_ids"])
        logprobs = read_logprobs(choice["logprobs"], sampled, server)
        forced = seen[prompt_length:]
        if len(forced):
            if given is None:
                rows = reply["prompt_logprobs"]  # null also when it was cut off before it had read its prompt
                if rows is None or not forced_exactly(sampling):
                    given = np.full(len(forced), np.nan, np.float32)
                else:
                    given = read_prompt_logprobs(rows, seen, prompt_length, server)
            logprobs = np.concatenate([given, logprobs])
            if len(forced) == sampling.max_tokens:
                sampled, logprobs, finish, matched = EMPTY_IDS, logprobs[: len(forced)], "length", None
        length = len(forced) + len(sampled)
        spans = versions.spans(choice["weight_versions"] or (), len(forced), length) if versions is not None else ()
        cached = int((reply["usage"]["prompt_tokens_details"] or {"cached_tokens": 0})["cached_tokens"] or 0)
    except (KeyError, TypeError, IndexError) as error:
        raise lacking("the reply", error, server) from error
    if length and not spans:
        spans = (VersionSpan(now, 0, length),)
    at = "after_mask" if not is_greedy(sampling) and (sampling.top_k > 0 or sampling.top_p < 1) else "before_mask"
    ids, digest = token_ids(np.concatenate([forced, sampled])), digest_ids(seen, sampled)
    logprobs.flags.writeable = False
    return Generation(ids, logprobs, spans, finish, digest, logprobs_at=at, matched=matched, cached_tokens=cached)


class Stream:
    """Gathers the events of a streamed reply into the reply that would have come whole, and tells of each piece."""

    def __init__(self, on_tokens: Callable[[IntArray, FloatArray], None], server: str) -> None:
        self._on_tokens, self._server = on_tokens, server
        self._ids: list[int] = []
        self._content: list[Any] = []
        self._told: dict[str, Any] = {"finish_reason": None, "stop_reason": None, "weight_versions": None}
        self._reply: dict[str, Any] = {"usage": {"prompt_tokens_details": None}, "prompt_logprobs": None}

    def event(self, event: Any) -> None:
        """One event."""
        try:
            if "prompt_token_ids" in event:
                self._reply["prompt_token_ids"] = event["prompt_token_ids"]
            if event["usage"] is not None:
                self._reply["usage"] = {"prompt_tokens_details": None} | event["usage"]
            for choice in event["choices"]:
                ids = token_ids(choice["token_ids"])
                logprobs = read_logprobs(choice["logprobs"], ids, self._server)
                self._ids += choice["token_ids"]
                self._content += choice["logprobs"]["content"] if len(ids) else ()
                self._told |= {name: choice[name] for name in self._told}
                if len(ids):
                    self._on_tokens(ids, logprobs)
        except (KeyError, TypeError, IndexError) as error:
            raise lacking("an event", error, self._server) from error

    def whole(self) -> dict[str, Any]:
        """The reply, once the stream has ended."""
        choice = {**self._told, "token_ids": self._ids, "logprobs": {"content": self._content}}
        return {**self._reply, "choices": [choice]}


def read_finish(choice: Mapping[str, Any], server: str) -> tuple[Finish, int | str | None]:
    """The finish reason, and the stop id or string that matched."""
    reason = choice["finish_reason"]
    if reason in ("abort", "length"):
        return reason, None
    if reason == "stop":
        return "stop", choice["stop_reason"]
    raise EngineError(f"{server}: POST {GENERATE} ended with the unknown finish reason {reason!r}")


def read_logprobs(logprobs: Any, ids: IntArray, server: str) -> FloatArray:
    """One entry for each token; each must stand at its own."""
    entries = logprobs["content"] if logprobs is not None else ()
    if [entry["token_id"] for entry in entries] != ids.tolist():
        raise EngineError(
            f"{server}: POST {GENERATE} gave {len(entries)} log-probs that are not those of its {len(ids)} tokens"
        )
    return _numbers([entry["logprob"] for entry in entries])


def read_prompt_logprobs(rows: Sequence[Any], ids: IntArray, start: int, server: str) -> FloatArray:
    """Those of `ids[start:]`; a row is keyed by its token."""
    if len(rows) != len(ids) or any(str(token) not in row for token, row in zip(ids[start:], rows[start:], strict=True)):
        raise EngineError(f"{server}: POST {GENERATE} gave {len(rows)} prompt log-probs, not those of the {len(ids)} ids sent")
    return _numbers([row[str(token)]["logprob"] for token, row in zip(ids[start:], rows[start:], strict=True)])


def _numbers(values: Sequence[float]) -> FloatArray:
    numbers = np.array(values, np.float32)
    numbers[numbers <= NO_NUMBER] = np.nan
    return numbers


def read_scores(request: ScoreRequest, reply: Any, server: str) -> tuple[FloatArray, str]:
    """The log-probs of `ids[start:]`, and the server's version string."""
    try:
        choice = reply["choices"][0]
        if choice["finish_reason"] == "abort":
            raise EngineAborted(f"{server}: scoring {request.id!r} was aborted")
        seen = token_ids(reply["prompt_token_ids"])
        if not np.array_equal(seen, request.ids):
            raise EngineError(f"{server}: POST {GENERATE} scored other ids than those sent")
        scores = read_prompt_logprobs(reply["prompt_logprobs"], seen, request.start, server)
        return scores, choice["weight_versions"][-1]["version"]
    except (KeyError, TypeError, IndexError) as error:
        raise lacking("the scores", error, server) from error


def lacking(what: str, error: Exception, server: str) -> EngineError:
    """A reply of another shape than the known versions give."""
    return EngineError(f"{server}: POST {GENERATE}: {what} lacks {error}; is its version a known one?")
