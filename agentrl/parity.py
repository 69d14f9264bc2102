"""Whether a running server computes what the learner computes: a few replies sampled there, and scored by the learner here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from agentrl.engines.contract import Engine, EngineInfo, GenerateRequest, Generation
from agentrl.engines.http import Refused, Transport
from agentrl.episode import Episode, FloatArray, IntArray, Sampling, Turn, digest_ids
from agentrl.errors import EngineError, UserError
from agentrl.rendering.contract import Message

ASKED = ("What is the capital of Peru?", "Add 17 and 25.", "Write a line of Python that sorts a list.", "Name three rivers.")
TOKENS = 32
"""So many are sampled of each reply, at temperature 1."""
EXACT, BF16 = 1e-4, 0.05
"""Mean gaps below which the server may compute in float32, and in bfloat16 with the same weights."""


@dataclass(frozen=True, slots=True)
class Parity:
    """What was measured. `gaps` are |learner - server| of each sampled token's log-prob, `drifted` the replies of which the
    server saw other ids than it was sent or gave back."""

    info: EngineInfo
    replies: int
    tokens: int
    drifted: int
    gap_mean: float
    gap_max: float

    @property
    def verdict(self) -> Literal["float32", "bf16", "other weights"]:
        """What a gap of this size comes from."""
        return "float32" if self.gap_mean < EXACT else "bf16" if self.gap_mean < BF16 else "other weights"


def check_parity(url: str, model: Path) -> Parity:
    """Asks the server at `url` and scores its replies with the folder `model`, in float32.

    `UserError` for a server that is neither SGLang nor vLLM, or that serves another model or tokenizer; `EngineError` for one
    that does not answer.
    """
    if not (model / "config.json").is_file():
        raise UserError(f"{model} is no model folder (it has no config.json); give the folder that the server serves")
    return asyncio.run(_check(url, model))


async def find_kind(url: str) -> Literal["sglang", "vllm"]:
    """Told by the routes that only one of the two has."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"a server's URL begins with http:// or https://, got {url!r}; such as http://127.0.0.1:30000")
    http = Transport("a server", url, connect_s=5.0)
    await http.open()
    try:
        routes: Sequence[tuple[Literal["sglang", "vllm"], str]] = (("sglang", "/model_info"), ("vllm", "/version"))
        for kind, path in routes:
            try:
                await http.call("GET", path, deadline=asyncio.timeout(10.0), seconds=10.0)
                return kind
            except Refused as error:
                if error.status not in (404, 405):
                    raise
    finally:
        await http.close()
    what = "it has no /model_info and no /version"
    raise UserError(f"{url} answers, but is neither SGLang nor vLLM ({what}); give the URL of the server's own API")


async def _check(url: str, model: Path) -> Parity:
    engine: Engine
    if await find_kind(url) == "sglang":
        from agentrl.engines.sglang import SGLangEngine

        engine = SGLangEngine(url, model=model, vocab_size=_vocab_size(model))
    else:
        from agentrl.engines.vllm import VLLMEngine

        engine = VLLMEngine(url, model=model, vocab_size=_vocab_size(model))
    async with engine:
        prompts = await asyncio.to_thread(_prompts, model)
        sampling = Sampling(max_tokens=TOKENS)
        replies = [
            await engine.generate(GenerateRequest(f"parity-{n}", "policy", (prompt,), sampling, seed=n))
            for n, prompt in enumerate(prompts)
        ]
        info = engine.info
    pairs = [(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True) if len(reply.ids)]
    if not pairs:
        raise EngineError(f"{url} gave {len(prompts)} empty replies; does it sample at all?")
    scored = await asyncio.to_thread(_scored, model, pairs)
    gaps = np.abs(np.concatenate([ours - reply.logprobs for ours, (_, reply) in zip(scored, pairs, strict=True)]))
    if not np.isfinite(gaps).all():
        raise EngineError(f"{url} gave no log-probs for {int((~np.isfinite(gaps)).sum())} of {len(gaps)} sampled tokens")
    drifted = sum(reply.digest != digest_ids(prompt, reply.ids) for prompt, reply in pairs)
    return Parity(info, len(pairs), len(gaps), drifted, float(gaps.mean()), float(gaps.max()))


def _vocab_size(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    return int((config if "vocab_size" in config else config["text_config"])["vocab_size"])


def _prompts(model: Path) -> list[IntArray]:
    """As an agent would send them."""
    from agentrl.rendering.template import TemplateRenderer

    renderer = TemplateRenderer.from_folder(model)
    return [renderer.extend(renderer.open([Message("user", text)])).ids for text in ASKED]


def _scored(model: Path, pairs: Sequence[tuple[IntArray, Generation]]) -> list[FloatArray]:
    """The learner's log-probs of the replies."""
    from agentrl.learning.contract import Row, TrainedTurn
    from agentrl.learning.local import LocalLearner
    from agentrl.objectives import NLL

    rows: list[Row] = []
    for number, (prompt, reply) in enumerate(pairs):
        turn = Turn(
            id=f"reply-{number}", agent="", index=0, policy="policy", versions=reply.spans, parent=None, predecessor=None,
            branch="", context_ids=prompt, sampled_ids=reply.ids, logprobs=reply.logprobs, logprobs_at=reply.logprobs_at,
            finish=reply.finish, sampling=Sampling(max_tokens=TOKENS), seed=number, text="",
        )  # fmt: skip
        episode = Episode(f"parity-{number}", "parity", None, number, "", "policy", "done", (turn,))
        rows.append(Row(episode, turn, (TrainedTurn(turn, np.zeros(len(reply.ids), np.float32)),)))
    learner = LocalLearner("policy", model, NLL())
    return [turns[0] for turns in learner.logprobs(rows)]
