"""The local engine's numbers are those of transformers. Helpers of the other local-engine tests live here too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agentrl.engines.contract import GenerateRequest, Generation, ScoreRequest
from agentrl.engines.local import LocalEngine
from agentrl.episode import IntArray, Sampling, digest_ids, token_ids
from agentrl.transformer.config import ModelConfig, RopeScaling
from agentrl.transformer.weights import init_weights, save_weights

QWEN = ModelConfig(
    architecture="Qwen3ForCausalLM",
    vocab_size=97,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate_size=40,
    max_positions=1024,
    tied=True,
)
LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128,
    hidden_size=36,
    layers=2,
    heads=3,
    kv_heads=3,
    head_dim=12,
    intermediate_size=64,
    max_positions=1024,
    rope_theta=5e5,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
)


def save_model(folder: Path, config: ModelConfig = QWEN, seed: int = 0) -> Path:
    """A random model whose distributions are neither flat nor peaked."""
    save_weights(folder, config, init_weights(config, seed, std=0.25))
    return folder


def ids(count: int, seed: int, vocab: int = QWEN.vocab_size) -> IntArray:
    return token_ids(np.random.default_rng(seed).integers(0, vocab, count))


def request(name: str, prompt: IntArray, *, seed: int = 0, policy: str = "policy", **more: Any) -> GenerateRequest:
    fields = {key: more.pop(key) for key in ("forced", "session", "columns") if key in more}
    return GenerateRequest(name, policy, (prompt,), Sampling(**{"max_tokens": 16} | more), seed, **fields)


@asynccontextmanager
async def serving(models: Any, **options: Any) -> AsyncIterator[LocalEngine]:
    async with LocalEngine(models, **{"threads": 1} | options) as engine:
        yield engine


def same(one: Generation, two: Generation) -> bool:
    """Equal ids, and log-probs equal to the bit."""
    return one.ids.tobytes() == two.ids.tobytes() and one.logprobs.tobytes() == two.logprobs.tobytes()


def reference(folder: Path, path: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """[T, vocab] log-probs by transformers, in float64 from float32 logits; row i predicts token i + 1."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([list(path)])).logits[0].double() / temperature, -1)


def taken(logprobs: torch.Tensor, path: Sequence[int], start: int) -> np.ndarray[Any, Any]:
    rows = torch.arange(start - 1, len(path) - 1)
    return logprobs[rows, torch.tensor(list(path))[start:]].numpy()


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param), QWEN if request.param == "qwen3" else LLAMA)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
async def test_sampled_logprobs_are_those_of_the_tempered_distribution(folder: Path, temperature: float) -> None:
    prompt = ids(40, 1)
    async with serving(folder) as engine:
        got = await engine.generate(request("a", prompt, max_tokens=40, temperature=temperature))
    path = [*prompt, *got.ids]
    want = taken(reference(folder, path, temperature), path, 40)
    assert np.abs(want - got.logprobs).max() < 1e-5
    assert (len(got.ids), got.finish, got.logprobs_at) == (40, "length", "before_mask")
    assert got.digest == digest_ids(prompt, got.ids)


async def test_forced_logprobs_come_from_prefill_and_agree(folder: Path) -> None:
    prompt, forced = ids(21, 2), ids(33, 3)
    async with serving(folder) as engine:
        got = await engine.generate(request("a", prompt, forced=forced, max_tokens=33, temperature=0.8))
    path = [*prompt, *forced]
    assert (got.ids == forced).all()
    assert np.abs(taken(reference(folder, path, 0.8), path, 21) - got.logprobs).max() < 1e-5


async def test_scores_agree_beyond_one_block_of_keys(folder: Path) -> None:
    path = ids(700, 4)
    async with serving(folder) as engine:
        whole = await engine.score(ScoreRequest("a", "policy", path))
        tail = await engine.score(ScoreRequest("b", "policy", path, start=650))
        assert whole.version == engine.version("policy")
    assert np.abs(taken(reference(folder, path), path, 1) - whole.logprobs).max() < 1e-5
    assert (tail.logprobs == whole.logprobs[649:]).all()


async def test_greedy_takes_the_likeliest_token_and_gives_its_logprob_at_temperature_one(folder: Path) -> None:
    prompt = ids(10, 5)
    async with serving(folder) as engine:
        cold = await engine.generate(request("a", prompt, temperature=0.0, max_tokens=24))
        one = await engine.generate(request("b", prompt, temperature=0.5, top_k=1, max_tokens=24))
    path = [*prompt, *cold.ids]
    want = reference(folder, path)
    assert (want[9:-1].argmax(-1).numpy() == cold.ids).all()
    assert np.abs(taken(want, path, 10) - cold.logprobs).max() < 1e-5
    assert same(cold, one)


async def test_entropy_is_that_of_the_tempered_distribution(folder: Path) -> None:
    prompt, forced = ids(12, 6), ids(5, 7)
    async with serving(folder) as engine:
        got = await engine.generate(request("a", prompt, forced=forced, temperature=0.7, columns=("entropy",)))
    want = reference(folder, [*prompt, *got.ids], 0.7)[11:-1]
    assert np.abs(-(want.exp() * want).sum(-1).numpy() - got.columns["entropy"].values).max() < 1e-5


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.5), (8, 0.6)])
async def test_filters_keep_the_likeliest_and_leave_the_logprobs(folder: Path, top_k: int, top_p: float) -> None:
    prompt = ids(12, 8)
    async with serving(folder) as engine:
        got = await engine.generate(request("a", prompt, max_tokens=60, top_k=top_k, top_p=top_p))
    path = [*prompt, *got.ids]
    want = reference(folder, path)
    assert np.abs(taken(want, path, 12) - got.logprobs).max() < 1e-5
    likelier = want[11:-1] > torch.tensor(got.logprobs.astype(np.float64) + 1e-4)[:, None]
    assert int(likelier.sum(-1).max()) < (top_k or 10**6)
    assert float((likelier * want[11:-1].exp()).sum(-1).max()) <= top_p + 1e-4
    assert len(set(got.ids.tolist())) > 3
