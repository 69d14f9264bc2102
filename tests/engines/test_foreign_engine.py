"""Models that transformers runs, in the local engine: the same contract, and transformers' own numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from agentrl.engines.contract import GenerateRequest, ScoreRequest
from agentrl.engines.local import LocalEngine
from agentrl.episode import Sampling, token_ids
from agentrl.testing import check_engine
from agentrl.transformer.weights import load_weights
from tests.transformer.foreign_models import KINDS, foreign, make_foreign


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("foreign")
    for kind in KINDS:
        make_foreign(place / kind, kind)
    return place


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
async def test_engine_holds_its_contract(kind: str, folders: Path, tmp_path: Path) -> None:
    def weights(n: int) -> dict[str, torch.Tensor]:
        return load_weights(make_foreign(tmp_path / str(n), kind, seed=n))

    held = await check_engine(lambda: LocalEngine(folders / kind, threads=1), weights=weights)
    assert len(held) == 39


@pytest.mark.parametrize("kind", KINDS)
async def test_scores_are_those_of_transformers(kind: str, folders: Path) -> None:
    ids = token_ids(np.random.default_rng(0).integers(3, 128, 40))
    async with LocalEngine(folders / kind, threads=1) as engine:
        given = await engine.score(ScoreRequest("s", "policy", ids, start=30))
    with torch.no_grad():
        logits = foreign(kind)(torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
    wanted = logits.log_softmax(-1)[29:39].gather(1, torch.from_numpy(ids[30:].astype(np.int64))[:, None])[:, 0]
    np.testing.assert_allclose(given.logprobs, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mistral-window"])
async def test_a_reply_that_goes_on_from_forced_tokens_has_the_bits_of_the_uncut_one(kind: str, folders: Path) -> None:
    prompt = token_ids(range(5, 30))  # longer than the sliding windows
    sampling = Sampling(max_tokens=24)
    async with LocalEngine(folders / kind, threads=1) as engine:
        whole = await engine.generate(GenerateRequest("a", "policy", (prompt,), sampling, 7))
        again = await engine.generate(GenerateRequest("b", "policy", (prompt,), sampling, 7, forced=whole.ids[:9]))
        scored = await engine.score(ScoreRequest("c", "policy", np.concatenate((prompt, whole.ids)), start=len(prompt)))
    assert again.ids.tobytes() == whole.ids.tobytes()
    assert again.logprobs.tobytes() == whole.logprobs.tobytes()
    np.testing.assert_allclose(scored.logprobs, whole.logprobs, atol=1e-4)


async def test_it_says_once_that_it_is_slow(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with LocalEngine(folders / "gpt2", threads=1) as engine:
            for n in range(3):
                await engine.generate(GenerateRequest(str(n), "policy", (token_ids([5, 6]),), Sampling(max_tokens=2), n))
    assert caplog.text.count("GPT2LMHeadModel is run by transformers, one request at a time: slowly") == 1
