"""Bodies of the generate route as the fake reads and writes them; the shapes are vLLM 0.32.0's, recorded from a real server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentrl.engines.sglang.fake.replies import decode
from agentrl.engines.sglang.fake.scheduler import Run
from agentrl.engines.sglang.fake.served import Draw, Step
from agentrl.engines.vllm.wire import NAMED
from agentrl.episode import Sampling

MODEL = "toy"


class BadRequest(Exception):
    """An answer with this status and message."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def bad(message: str, param: str | None = None) -> BadRequest:
    """How the engine itself refuses."""
    return BadRequest(400, "BadRequestError", message, param)


def read_run(body: Mapping[str, Any], vocab_size: int, context: int, eos: int) -> Run:
    """One request, checked as the real server does."""
    ids, params = body["token_ids"], body["sampling_params"]
    check_ids(ids, vocab_size, context)
    if params.get("max_tokens", 16) < 1:
        raise bad(f"max_tokens must be at least 1, got {params['max_tokens']}. (parameter=max_tokens, value=0)", "max_tokens")
    salt = body.get("cache_salt") or ""
    if len(salt) > 128 or set(salt) & set("@/\\\0"):
        message = "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\\\', or NUL."
        raise bad(f"{message} (parameter=cache_salt)", "cache_salt")
    temperature, stops = params.get("temperature", 1.0), params.get("stop") or []
    greedy = temperature < 1e-5
    sampling = Sampling(0.0) if greedy else Sampling(temperature, params.get("top_k", 0), params.get("top_p", 1.0))
    return Run(
        rid=NAMED + (body.get("request_id") or uuid.uuid4().hex[:16]),
        prompt=list(ids),
        how=Draw(sampling, params.get("seed")),
        max_new=min(params.get("max_tokens", 16), context - len(ids)),
        stop_ids=frozenset((*(params.get("stop_token_ids") or ()), *(() if params.get("ignore_eos") else (eos,)))),
        stops=tuple([stops] if isinstance(stops, str) else stops),
        cache_key=salt,
        score_from=0 if params.get("prompt_logprobs") is not None else -1,
    )


def check_ids(ids: Sequence[int], vocab_size: int, context: int) -> None:
    """The three refusals of a prompt."""
    if not ids:
        message = "1 validation error:\n  {'type': 'too_short', 'loc': 'body.token_ids'}"
        raise BadRequest(400, "Bad Request", message, "body.token_ids")
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise bad(f"Token id {outside[0]} is out of vocabulary")
    if len(ids) >= context:
        raise bad(
            f"The decoder prompt (length {len(ids)}) plus the number of requested output tokens (at least 1) is longer than "
            f"the maximum model length of {context}. Make sure that `max_model_len` is no smaller than the number of text "
            "tokens (prompt + requested output tokens)."
        )


def write_reply(body: Mapping[str, Any], run: Run, version: str) -> dict[str, Any]:
    """The whole reply."""
    rows: list[Any] | None = None
    spelt = body["sampling_params"].get("detokenize", True)
    if run.score_from >= 0 and (run.scores or len(run.prompt) == 1):
        rows = [None]
        for token, score in zip(run.prompt[1:], run.scores, strict=True):
            rows.append({str(token): {"logprob": score, "rank": 1, "decoded_token": decode([token]) if spelt else None}})
    return {
        "request_id": run.rid, "model": body.get("model") or MODEL, "created": int(time.time()), "usage": usage(run),
        "prompt_logprobs": rows, "prompt_token_id_logprobs": None,
        "prompt_token_ids": run.prompt if body.get("return_token_ids") else None, "mm_placeholders": None, "metrics": None,
        "kv_transfer_params": None, "ec_transfer_params": None, "output_mode": "tokens",
        "choices": [write_choice(body, run, run.steps, version, last=True)],
    }  # fmt: skip


def write_choice(body: Mapping[str, Any], run: Run, steps: Sequence[Step], version: str, *, last: bool) -> dict[str, Any]:
    """These steps of a run; the last choice of a reply tells its end and its versions. An EOS is not told as what matched."""
    params: Mapping[str, Any] = body["sampling_params"]
    finish: dict[str, Any] = run.finish if last and run.finish is not None else {"type": None}
    matched = finish.get("matched")
    eos = isinstance(matched, int) and matched not in (params.get("stop_token_ids") or ())
    entries = [{"token_id": step.token, "logprob": drawn_logprob(step, run.how), "rank": 1} for step in steps]
    return {
        "index": 0, "finish_reason": finish["type"], "stop_reason": None if eos else matched,
        "token_ids": [step.token for step in steps], "routed_experts": None, "sampling_mask": None,
        "weight_versions": run.spans(version) if last and run.output else None,
        "logprobs": {"content": [{**entry, "top_logprobs": [entry]} for entry in entries]}
        if params.get("logprobs") is not None
        else None,
    }  # fmt: skip


def drawn_logprob(step: Step, how: Draw) -> float:
    """Of the distribution that was drawn from: after the mask; of a greedy request, at temperature 1."""
    assert step.row is not None
    return step.logprob if how.sampling.temperature == 0 else step.logprob - float(np.logaddexp.reduce(step.row[step.keep]))


def usage(run: Run) -> dict[str, Any]:
    """How many tokens."""
    return {
        "prompt_tokens": len(run.prompt), "total_tokens": len(run.prompt) + len(run.output),
        "completion_tokens": len(run.output), "prompt_tokens_details": None, "completion_tokens_details": None,
    }  # fmt: skip
