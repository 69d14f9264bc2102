"""The bodies of SGLang's native API: requests as it takes them, replies as it gives them. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest
from agentrl.engines.replies import is_greedy, told_version
from agentrl.episode import (
    Column,
    Finish,
    FloatArray,
    IntArray,
    Version,
    VersionSpan,
    digest_ids,
    token_ids,
)
from agentrl.errors import EngineAborted, EngineError, UserError

SEED_BITS = 31
"""Seeds are cut to these low bits: the server holds them in a signed integer."""

KEPT, MASK_LOGPROB = "kept", "mask_logprob"
COLUMNS = frozenset({KEPT, MASK_LOGPROB})
"""`kept` (S, widest) int32: the ids that top-k and top-p kept, likeliest first, filled up with -1. `mask_logprob` (S,) float32:
the token's log-prob under that mask. Forced tokens, for which nothing was drawn, have -1 and nan."""


def check_mask(request: GenerateRequest, widest: int) -> None:
    """The server tells the mask of a greedy request, and of one with top-k of up to `widest`."""
    top_k = request.sampling.top_k
    if request.columns and not is_greedy(request.sampling) and not 1 < top_k <= widest:
        raise UserError(
            f"request {request.id!r} asks for {', '.join(request.columns)} with top_k={top_k}; this server tells the mask of "
            f"top_k 2 to {widest}, and of greedy requests"
        )


def generate_body(
    request: GenerateRequest, prompt: IntArray, max_new: int, cache_key: str, adapter: str | None = None
) -> dict[str, Any]:
    """Prompt and forced prefix go as input ids.

    A stop id is heeded only while the model's own end-of-text is heeded too (`ignore_eos` switches both off), so a request
    without stop ids asks for `ignore_eos` and one with stop ids may also end at the model's own.
    """
    sampling = request.sampling
    params: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_new_tokens": max_new,
        "sampling_seed": request.seed & ((1 << SEED_BITS) - 1),
    }
    if sampling.top_k > 0:
        params["top_k"] = sampling.top_k
    if sampling.top_p < 1:
        params["top_p"] = sampling.top_p
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    if sampling.stop_ids:
        params["stop_token_ids"] = list(sampling.stop_ids)
    else:
        params["ignore_eos"] = True
    body = {
        "input_ids": np.concatenate([prompt, request.forced]),
        "sampling_params": params,
        "return_logprob": True,
        # The first entry of the answer is always null: the log-prob of token i is asked for from i - 1.
        "logprob_start_len": len(prompt) - 1 if len(request.forced) else -1,
        "return_prompt_token_ids": True,
        "extra_key": cache_key,
    }
    if request.columns and max_new:  # asked for the mask of no token the server answers 500
        body["return_sampling_mask"] = True
    if adapter is not None:
        body["lora_path"] = adapter
    return body


def score_body(request: ScoreRequest, cache_key: str, adapter: str | None = None) -> dict[str, Any]:
    """Nothing is sampled; the prompt's own log-probs come back, at temperature 1."""
    body = {
        "input_ids": token_ids(request.ids),
        "sampling_params": {"temperature": 0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": request.start - 1,
        "extra_key": cache_key,
    }
    return body if adapter is None else {**body, "lora_path": adapter}


class Told(Protocol):
    """How the server's account of its weight versions is read."""

    def of(self, text: str) -> Version: ...

    def spans(
        self, recorded: Sequence[Mapping[str, Any]], forced: int, last: str, retractions: int
    ) -> tuple[VersionSpan, ...]: ...


@dataclass(frozen=True, slots=True)
class Versions:
    """The server's weight versions (strings) as ours, and whether each came while KV was recomputed."""

    policy: str
    recomputed: Mapping[str, bool]

    def of(self, text: str) -> Version:
        """See `told_version`."""
        return told_version(self.policy, text)

    def spans(self, recorded: Sequence[Mapping[str, Any]], forced: int, last: str, retractions: int) -> tuple[VersionSpan, ...]:
        """The server's spans count sampled tokens; forced ones stand before them and belong to the first."""
        spans: list[VersionSpan] = []
        for span in recorded:
            start, end = int(span["start"]) + forced, int(span["end"]) + forced
            if end == start:
                continue
            recomputed = bool(spans) and retractions > 0 and self.recomputed.get(span["version"], True)
            spans.append(VersionSpan(self.of(span["version"]), start, end, "recomputed" if recomputed else "kept"))
        if not forced:
            return tuple(spans)
        if not spans:
            return (VersionSpan(self.of(last), 0, forced),)
        return (VersionSpan(spans[0].version, 0, spans[0].end), *spans[1:])


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An adapter's version is ours alone: the server tells that of the base, which must stay what it was."""

    version: Version
    base: str
    server: str

    def of(self, text: str) -> Version:
        """`EngineError` when the base is another by now."""
        if text != self.base:
            raise EngineError(f"{self.server}: its base was {self.base} and is {text}; who publishes to the base of adapters?")
        return self.version

    def spans(self, recorded: Sequence[Mapping[str, Any]], forced: int, last: str, retractions: int) -> tuple[VersionSpan, ...]:
        """One: a request keeps the adapter that it began with."""
        del retractions
        end = forced + max((int(span["end"]) for span in recorded), default=0)
        for text in {last, *(span["version"] for span in recorded)}:
            self.of(text)
        return (VersionSpan(self.version, 0, end),) if end else ()


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the replies to one request for tokens."""

    request: GenerateRequest
    prompt_length: int
    versions: Told
    server: str
    vocab_size: int

    def generation(self, reply: Any) -> Generation:
        """A whole reply. The digest is of what the server says it saw and gave, never of what was asked.

        Forced tokens come back with the server's input log-probs, which are at temperature 1; at another temperature they
        are nan (forced tokens are never trained).
        """
        try:
            meta = reply["meta_info"]
            finish, matched = read_finish(meta["finish_reason"], self.server)
            seen, sampled = token_ids(reply["prompt_token_ids"]), token_ids(reply["output_ids"])
            forced = seen[self.prompt_length :]
            logprobs = read_logprobs(meta["output_token_logprobs"], sampled, self.server)
            logprobs = np.concatenate([self._forced_logprobs(meta, forced), logprobs])
            spans = self.versions.spans(meta["weight_versions"], len(forced), meta["weight_version"], meta["num_retractions"])
            columns = read_mask(self.request, meta, len(forced), sampled, self.server)
            cached, times = int(meta["cached_tokens"]), read_times(meta)
        except (KeyError, TypeError, IndexError) as error:
            raise _lacks(self.server, error) from error
        logprobs.flags.writeable = False
        ids, digest = token_ids(np.concatenate([forced, sampled])), digest_ids(seen, sampled)
        return Generation(
            ids, logprobs, spans, finish, digest, matched=matched, cached_tokens=cached, columns=columns, times=times
        )

    def piece(self, chunk: Any, told: int) -> tuple[IntArray, FloatArray]:
        """What a chunk of a stream, which holds the reply from its start, adds to the `told` tokens before."""
        try:
            meta = chunk["meta_info"]
            forced = token_ids(chunk["prompt_token_ids"])[self.prompt_length :]
            begin = max(0, told - len(forced))
            sampled = token_ids(chunk["output_ids"][begin:])
            logprobs = read_logprobs(meta["output_token_logprobs"][begin:], sampled, self.server)
            if told:
                return sampled, logprobs
            return token_ids([*forced, *sampled]), np.concatenate([self._forced_logprobs(meta, forced), logprobs])
        except (KeyError, TypeError, IndexError) as error:
            raise _lacks(self.server, error) from error

    def _forced_logprobs(self, meta: Any, forced: IntArray) -> FloatArray:
        sampling = self.request.sampling
        unknown = np.full(len(forced), np.nan, np.float32)
        if not len(forced) or (not meta["input_token_logprobs"] and _is_abort(meta)):  # ended before it was prefilled
            return unknown
        given = read_logprobs(meta["input_token_logprobs"][1:], forced, self.server, self.vocab_size - 1)
        return given if is_greedy(sampling) or sampling.temperature == 1 else unknown


class Stream:
    """Tells `on_tokens` what each event of a streamed reply adds; the last event is the whole reply."""

    def __init__(self, reader: Reader, on_tokens: Callable[[IntArray, FloatArray], None]) -> None:
        self._reader, self._on_tokens = reader, on_tokens
        self._told = 0
        self._last: Any = None

    def event(self, event: Any) -> None:
        """One event."""
        self._last = event
        ids, logprobs = self._reader.piece(event, self._told)
        self._told += len(ids)
        if len(ids):
            self._on_tokens(ids, logprobs)

    def generation(self) -> Generation:
        """The reply, once the stream has ended."""
        generation = self._reader.generation(self._last)
        if len(generation.ids) != self._told:
            raise EngineError(
                f"{self._reader.server}: POST /generate streamed {self._told} tokens, but its reply has {len(generation.ids)}"
            )
        return generation


def _is_abort(meta: Any) -> bool:
    return meta["finish_reason"] is not None and meta["finish_reason"]["type"] == "abort"


def _lacks(server: str, error: Exception) -> EngineError:
    return EngineError(f"{server}: POST /generate: the reply lacks {error}; is its version a known one?")


def read_mask(request: GenerateRequest, meta: Any, forced: int, sampled: IntArray, server: str) -> dict[str, Column]:
    """The columns that were asked for; see `COLUMNS`."""
    if not request.columns:
        return {}
    masks = meta["output_token_sampling_mask"] if len(sampled) else []
    inside = meta["output_token_sampling_logprobs"] if len(sampled) else []
    if not len(masks) == len(inside) == len(sampled) or not all(
        token in mask for token, mask in zip(sampled.tolist(), masks, strict=True)
    ):
        raise EngineError(f"{server}: POST /generate gave {len(masks)} masks that are not those of its {len(sampled)} tokens")
    kept = np.full((forced + len(sampled), max(map(len, masks), default=0)), -1, np.int32)
    for row, mask in zip(kept[forced:], masks, strict=True):
        row[: len(mask)] = mask
    logprobs = np.concatenate([np.full(forced, np.nan, np.float32), np.array(inside, np.float32)])
    given = {KEPT: Column(KEPT, kept), MASK_LOGPROB: Column(MASK_LOGPROB, logprobs)}
    return {name: given[name] for name in request.columns}


def read_finish(reason: Any, server: str) -> tuple[Finish, int | str | None]:
    """The finish reason, and the stop id or string that matched. An abort that carries a status is a failure."""
    kind = reason["type"]
    if kind == "abort":
        if reason.get("status_code"):
            retryable = int(reason["status_code"]) >= 500
            raise EngineError(f"{server}: POST /generate ended with {reason['message']}", retryable=retryable)
        return "abort", None
    if kind == "stop":
        return "stop", reason["matched"]
    if kind == "length":
        return "length", None
    raise EngineError(f"{server}: POST /generate ended with the unknown finish reason {reason!r}")


def read_logprobs(entries: Sequence[Any], ids: IntArray, server: str, last_id: int = -1) -> FloatArray:
    """`[logprob, id, text]` entries as an array; each must stand at its own token.

    Among INPUT log-probs 0.5.23 names the last id of the vocabulary 0, though the number is that of the right token.
    """
    told = [
        last_id if entry[1] == 0 and token == last_id else entry[1] for entry, token in zip(entries, ids.tolist(), strict=False)
    ]
    if len(entries) != len(ids) or told != ids.tolist():
        raise EngineError(f"{server}: POST /generate gave {len(entries)} log-probs that are not those of its {len(ids)} tokens")
    return np.array([np.nan if entry[0] is None else entry[0] for entry in entries], np.float32)


def read_times(meta: Mapping[str, Any]) -> dict[str, float]:
    """Seconds queued, in prefill and in decode; only a server with metrics on tells them."""
    if "request_finished_ts" not in meta or "forward_entry_time" not in meta:
        return {}
    prefilled = meta["prefill_finished_time"]
    return {
        "queued": float(meta["queue_time"]),
        "prefill": float(prefilled - meta["forward_entry_time"]),
        "decode": float(meta["request_finished_ts"] - prefilled),
    }


def read_scores(request: ScoreRequest, reply: Any, server: str, vocab_size: int) -> tuple[FloatArray, str]:
    """The log-probs of `ids[start:]`, and the server's version string."""
    try:
        meta = reply["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            raise EngineAborted(f"{server}: scoring {request.id!r} was aborted")
        entries = meta["input_token_logprobs"][1:]
        ids = np.asarray(request.ids, np.int32)[request.start :]
        return read_logprobs(entries, ids, server, vocab_size - 1), meta["weight_version"]
    except (KeyError, TypeError, IndexError) as error:
        raise EngineError(f"{server}: POST /generate: the scores lack {error}; is its version a known one?") from error
