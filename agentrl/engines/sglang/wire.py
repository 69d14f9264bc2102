"""The bodies of SGLang's native API: requests as it takes them, replies as it gives them. No I/O."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest, Weights
from agentrl.episode import EMPTY_IDS, Finish, FloatArray, IntArray, Sampling, Version, VersionSpan, digest_ids, token_ids
from agentrl.errors import EngineAborted, EngineError, UserError

SEED_BITS = 31
"""Seeds are cut to these low bits: the server holds them in a signed integer."""


def is_greedy(sampling: Sampling) -> bool:
    """Greedy requests give log-probs at temperature 1, whatever their temperature."""
    return sampling.temperature == 0 or sampling.top_k == 1


def generate_body(request: GenerateRequest, prompt: IntArray, max_new: int, cache_key: str) -> dict[str, Any]:
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
    return {
        "input_ids": np.concatenate([prompt, request.forced]).tolist(),
        "sampling_params": params,
        "return_logprob": True,
        # The first entry of the answer is always null: the log-prob of token i is asked for from i - 1.
        "logprob_start_len": len(prompt) - 1 if len(request.forced) else -1,
        "return_prompt_token_ids": True,
        "extra_key": cache_key,
    }


def score_body(request: ScoreRequest, cache_key: str) -> dict[str, Any]:
    """Nothing is sampled; the prompt's own log-probs come back, at temperature 1."""
    return {
        "input_ids": np.asarray(request.ids).tolist(),
        "sampling_params": {"temperature": 0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": request.start - 1,
        "extra_key": cache_key,
    }


@dataclass(frozen=True, slots=True)
class Versions:
    """The server's weight versions (strings) as ours, and whether each came while KV was recomputed."""

    policy: str
    recomputed: Mapping[str, bool]

    def of(self, text: str) -> Version:
        """A string that is no version of this policy (a server's start-up name) becomes step 0 of lineage `server`."""
        try:
            version = Version.parse(text)
        except ValueError:
            return Version("server", self.policy, 0, text)
        return version if version.policy == self.policy and str(version) == text else Version("server", self.policy, 0, text)

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


def read_generation(
    request: GenerateRequest, prompt_length: int, reply: Any, versions: Versions, server: str, vocab_size: int
) -> Generation:
    """A reply of /generate. The digest is of what the server says it saw and gave, never of what was asked.

    Forced tokens come back with the server's input log-probs, which are at temperature 1; at another temperature they
    are nan (forced tokens are never trained).
    """
    try:
        meta = reply["meta_info"]
        finish, matched = read_finish(meta["finish_reason"], server)
        seen = token_ids(reply["prompt_token_ids"])
        sampled = token_ids(reply["output_ids"])
        logprobs = read_logprobs(meta["output_token_logprobs"], sampled, server)
        forced = seen[prompt_length:]
        if len(request.forced):
            given = read_logprobs(meta["input_token_logprobs"][1:], forced, server, vocab_size - 1)
            exact = is_greedy(request.sampling) or request.sampling.temperature == 1
            logprobs = np.concatenate([given if exact else np.full_like(given, np.nan), logprobs])
        spans = versions.spans(meta["weight_versions"], len(forced), meta["weight_version"], meta["num_retractions"])
        cached, times = int(meta["cached_tokens"]), read_times(meta)
    except (KeyError, TypeError, IndexError) as error:
        raise EngineError(f"{server}: POST /generate: the reply lacks {error}; is its version a known one?") from error
    ids = token_ids(np.concatenate([forced, sampled]))
    logprobs.flags.writeable = False
    return Generation(
        ids, logprobs, spans, finish, digest_ids(seen, sampled), matched=matched, cached_tokens=cached, times=times
    )


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


def no_tokens(prompt: IntArray) -> Generation:
    """What a request gives that was aborted before the server saw it."""
    return Generation(EMPTY_IDS, np.zeros(0, np.float32), (), "abort", digest_ids(prompt))


def buckets(weights: Weights, limit: int) -> Iterator[list[tuple[str, Any]]]:
    """The tensors in groups of at most `limit` bytes (a larger one stands alone), on the CPU, each with storage of its own."""
    import torch

    bucket: list[tuple[str, Any]] = []
    size = 0
    for name, value in weights.items():
        tensor = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f'weights[{name!r}] is a {type(value).__name__}; pass tensors by name, or {{"path": folder}}')
        tensor = tensor.detach().cpu()
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and size + nbytes > limit:
            yield bucket
            bucket, size = [], 0
        # A view would be pickled with the whole storage that it looks into.
        bucket.append((name, tensor.contiguous() if tensor.untyped_storage().nbytes() == nbytes else tensor.clone()))
        size += nbytes
    if bucket:
        yield bucket


def serialize(bucket: list[tuple[str, Any]]) -> str:
    """A plain pickle in base64: needs no sglang here and no shared memory, so it crosses machines."""
    return base64.b64encode(pickle.dumps(bucket, protocol=4)).decode()
