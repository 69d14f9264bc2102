"""Bodies of /generate as the fake reads and writes them; the shapes are SGLang 0.5.23's, recorded from a real server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentrl.engines.sglang.fake.scheduler import Run
from agentrl.engines.sglang.fake.served import Draw, Step
from agentrl.engines.sglang.fake.toy import log_softmax
from agentrl.episode import Sampling

SAMPLING_PARAMS = (
    "max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema", "regex", "ebnf", "structural_tag",
    "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim", "stream_interval", "logit_bias",
    "sampling_seed", "custom_params", "beam_width", "watermark", "choice",
)  # fmt: skip


WIDEST_MASK = 4096
"""The server's own limit (--sampling-mask-max-tokens)."""


class BadRequest(Exception):
    """A 400 with this body."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(str(body))
        self.body = body


def engine_error(message: str) -> BadRequest:
    """The shape in which the engine itself refuses."""
    return BadRequest({"error": {"message": message}})


def validation_error(message: str) -> BadRequest:
    """The shape in which the HTTP layer refuses a body."""
    return BadRequest({"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400})


def encode(text: str) -> list[int]:
    """Ids of printable ASCII in the recorded byte-level tokenizer."""
    return [ord(letter) - 33 for letter in text]


def decode(ids: Sequence[int]) -> str:
    """Text of ids: printable ASCII, and the replacement character for everything else."""
    return "".join(chr(token + 33) if 0 <= token < 94 else "\ufffd" for token in ids)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model can take."""

    vocab_size: int
    context: int
    eos: int

    @property
    def max_input(self) -> int:
        """The scheduler's own limit on a prompt."""
        return self.context - 6


def read_prompts(body: Mapping[str, Any]) -> tuple[list[list[int]], bool]:
    """The prompts, and whether they came as a batch."""
    ids, text = body.get("input_ids"), body.get("text")
    if ids is None and text is None:
        raise engine_error("Either text, input_ids or input_embeds should be provided.")
    if ids is None:
        return ([encode(one) for one in text], True) if isinstance(text, list) else ([encode(str(text))], False)
    batch = bool(ids) and isinstance(ids[0], list)
    prompts: list[Any] = list(ids) if batch else [ids]
    if not all(prompts):
        raise engine_error("input_ids cannot be empty.")
    for prompt in prompts:
        if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
            raise validation_error("1 validation error:\n  {'type': 'value_error', 'loc': ('body', 'input_ids')}")
    return prompts, batch


def read_run(body: Mapping[str, Any], prompt: list[int], rid: str, limits: Limits) -> Run:
    """One prompt's request, checked as the real server does. Unknown top-level fields pass, unknown sampling params do not."""
    params: Mapping[str, Any] = body.get("sampling_params") or {}
    for name in params:
        if name not in SAMPLING_PARAMS:
            known = ", ".join(f"`{one}`" for one in SAMPLING_PARAMS)
            raise BadRequest({"error": f"unknown field `{name}`, expected one of {known}"})
    if body.get("sampling_logprobs_mode") not in (None, "selected", "support"):
        raise validation_error("1 validation error:\n  {'type': 'literal_error', 'loc': ('body', 'sampling_logprobs_mode')}")
    temperature, top_p, top_k = params.get("temperature", 1.0), params.get("top_p", 1.0), params.get("top_k", -1)
    if temperature < 0:
        raise engine_error(f"temperature must be a non-negative finite number, got {temperature}.")
    if not 0 < top_p <= 1:
        raise engine_error(f"top_p must be in (0, 1], got {top_p}.")
    if top_k < 1 and top_k != -1:
        raise engine_error(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    if body.get("return_sampling_mask") and temperature > 0 and not 1 <= top_k <= WIDEST_MASK:
        raise engine_error(
            f"return_sampling_mask requires top_k=1 for greedy sampling or finite 1 < top_k <= {WIDEST_MASK}; got "
            f"top_k={top_k if top_k > 0 else 1 << 30}. Lower top_k or increase --sampling-mask-max-tokens."
        )
    max_new = params.get("max_new_tokens", 128)
    check_length(len(prompt), max_new, limits)
    stops = params.get("stop") or []
    stop_ids: set[int] = set() if params.get("ignore_eos") else {limits.eos, *(params.get("stop_token_ids") or ())}
    bias = {int(token): float(value) for token, value in (params.get("logit_bias") or {}).items()}
    how = Draw(Sampling(temperature, max(0, top_k), top_p), params.get("sampling_seed"), float(params.get("min_p", 0.0)), bias)
    start = body.get("logprob_start_len")
    score_from = start if body.get("return_logprob") and start is not None else -1
    room = limits.context - 2 - len(prompt)
    return Run(
        rid, prompt, how, min(max_new, room), frozenset(stop_ids), tuple([stops] if isinstance(stops, str) else stops),
        f"{body.get('extra_key') or ''}{body.get('lora_path') or ''}", score_from,
    )  # fmt: skip


def check_length(length: int, max_new: int, limits: Limits) -> None:
    """The three refusals of what is too long."""
    if length >= limits.context:
        raise engine_error(f"The input ({length} tokens) is longer than the model's context length ({limits.context} tokens).")
    if length + max_new > limits.context:
        raise engine_error(
            f"Requested token count exceeds the model's maximum context length of {limits.context} tokens. You requested a "
            f"total of {length + max_new} tokens: {length} tokens from the input messages and {max_new} tokens for the "
            "completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."
        )
    if length > limits.max_input:
        raise engine_error(
            f"Input length ({length} tokens) exceeds the maximum allowed length ({limits.max_input} tokens). "
            "Use a shorter input or enable --allow-auto-truncate."
        )


def write_reply(body: Mapping[str, Any], run: Run, version: str, last_id: int) -> dict[str, Any]:
    """The reply so far; before the end of a stream, without the version spans."""
    params: Mapping[str, Any] = body.get("sampling_params") or {}
    shown, finish = list(run.output), run.finish
    if (
        finish is not None
        and finish["type"] == "stop"
        and not params.get("no_stop_trim")
        and isinstance(finish["matched"], int)
    ):
        shown.pop()
    text = decode(shown)
    if finish is not None and finish["type"] == "stop" and isinstance(finish["matched"], str):
        text = text[: text.index(finish["matched"])]
    reply: dict[str, Any] = {"text": text, "output_ids": list(run.output), "meta_info": _meta(body, run, version, last_id)}
    if body.get("return_prompt_token_ids"):
        reply["prompt_token_ids"] = run.prompt
    return reply


def _meta(body: Mapping[str, Any], run: Run, version: str, last_id: int) -> dict[str, Any]:
    clock = time.time() - time.monotonic()
    times = run.times
    meta: dict[str, Any] = {
        "id": run.rid,
        "finish_reason": run.finish,
        "prompt_tokens": len(run.prompt),
        "weight_version": run.versions[-1] if run.versions else version,
        "num_retractions": run.retractions,
        "storage_prefetch_wait": 0.0,
        "storage_staging_wait": 0.0,
        "forward_entry_time": clock + times["forward"],
        "prefill_finished_time": clock + times.get("prefilled", times["forward"]),
        "queue_time": times["forward"] - times["received"],
    }
    if body.get("return_logprob"):
        meta |= _logprobs(body, run, last_id)
    meta |= {"reasoning_tokens": 0, "completion_tokens": len(run.output), "cached_tokens": run.cached}
    if run.finish is not None:
        meta["weight_versions"] = run.spans(version)
    meta["cached_tokens_details"] = {"device": run.cached, "host": 0} if run.cached else None
    meta["dp_rank"] = None
    if run.finish is not None:
        meta |= _final_times(run, clock)
    return meta


def _final_times(run: Run, clock: float) -> dict[str, float]:
    times = run.times
    end = times.get("finished", times["forward"])
    final = {
        "e2e_latency": end - times["received"],
        "request_received_ts": clock + times["received"],
        "first_token_latency": times.get("prefilled", end) - times["received"],
        "api_server_dispatch_finish_ts": clock + times["received"],
        "request_finished_ts": clock + end,
    }
    if len(run.output) > 1:
        final["decode_throughput"] = (len(run.output) - 1) / max(1e-6, end - times["prefilled"])
    return final | {"response_sent_to_client_ts": time.time()}


def _logprobs(body: Mapping[str, Any], run: Run, last_id: int) -> dict[str, Any]:
    with_text = bool(body.get("return_text_in_logprobs"))
    if run.score_from >= 0 and (body.get("token_ids_logprob") or body.get("top_logprobs_num")):
        raise engine_error("the fake gives top and chosen log-probs of outputs only; ask with logprob_start_len -1")

    def triple(logprob: float | None, token: int) -> list[Any]:
        return [logprob, token, decode([token]) if with_text else None]

    given: list[Any] = []
    if run.score_from >= 0 and "prefilled" in run.times:
        first = [triple(None, run.prompt[run.score_from])] if run.score_from < len(run.prompt) else []
        # As the real server does: the last id of the vocabulary is called 0 here.
        names = [0 if token == last_id else token for token in run.prompt[run.score_from + 1 :]]
        given = first + [triple(score, name) for score, name in zip(run.scores, names, strict=True)]
    told: dict[str, Any] = {
        "input_token_logprobs": given,
        "output_token_logprobs": [triple(step.logprob, step.token) for step in run.steps],
        "output_token_logprobs_length": len(run.steps),
    }
    if body.get("return_sampling_mask"):
        told |= _mask(body, run.steps)
    if body.get("token_ids_logprob"):
        told["input_token_ids_logprobs"] = []
        told["output_token_ids_logprobs"] = [
            [triple(float(_row(step)[token]), token) for token in body["token_ids_logprob"]] for step in run.steps
        ]
    if body.get("top_logprobs_num"):
        told["output_top_logprobs"] = [
            [triple(float(_row(step)[token]), int(token)) for token in np.argsort(-_row(step))[: body["top_logprobs_num"]]]
            for step in run.steps
        ]
    return told


def _mask(body: Mapping[str, Any], steps: Sequence[Step]) -> dict[str, Any]:
    masks = [np.flatnonzero(step.keep) for step in steps]
    masks = [mask[np.argsort(-_row(step)[mask], kind="stable")] for mask, step in zip(masks, steps, strict=True)]
    inside = [log_softmax(_row(step)[mask]) for step, mask in zip(steps, masks, strict=True)]
    support = body.get("sampling_logprobs_mode") == "support"
    return {
        "output_token_sampling_mask": [mask.tolist() for mask in masks],
        "output_token_sampling_logprobs": [
            row.tolist() if support else float(row[mask.tolist().index(step.token)])
            for row, mask, step in zip(inside, masks, steps, strict=True)
        ],
        "output_token_sampling_mask_length": len(masks),
    }


def _row(step: Step) -> Any:
    if step.row is None:
        raise engine_error("the served engine gives no log-probs but those of the sampled token")
    return step.row


def new_rid() -> str:
    """What the server calls a request that brought no id."""
    return uuid.uuid4().hex
