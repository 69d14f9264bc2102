"""Every engine answers one contract: the local engine, SGLang over its wire, the script, the mock."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import Engine
from agentrl.engines.local import LocalEngine
from agentrl.engines.mock import Mock
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel, random_weights
from agentrl.errors import UserError
from agentrl.testing import EngineNonconforming, check_engine, check_same
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

CONFIG = ModelConfig(
    "Qwen3ForCausalLM", vocab_size=128, hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate_size=64,
    max_positions=192, tied=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_weights(path, CONFIG, local_weights(0))
    return path


def local_weights(n: int) -> dict[str, Any]:
    """Large enough that the distribution is far from uniform."""
    return init_weights(CONFIG, seed=n, std=0.3)


def local(folder: Path) -> AbstractAsyncContextManager[Engine]:
    return LocalEngine(folder, slots=16, threads=1)


@asynccontextmanager
async def sglang_over_toy(deterministic: bool) -> AsyncGenerator[Engine, None]:
    async with FakeSGLang(deterministic=deterministic) as fake, SGLangEngine(fake.url, vocab_size=fake.vocab_size) as engine:
        yield engine


@asynccontextmanager
async def sglang_over_local(folder: Path) -> AsyncGenerator[Engine, None]:
    async with (
        LocalEngine(folder, slots=16, threads=1) as engine,
        FakeSGLang(engine, context=192, eos=-1) as fake,
        SGLangEngine(fake.url, vocab_size=fake.vocab_size) as client,
    ):
        yield client


def mock() -> AbstractAsyncContextManager[Engine]:
    return Mock(lambda rng: 0.04 + 0.02 * rng.random(), vocab_size=500, max_context=4096)


CASES: dict[str, tuple[Callable[[Path], AbstractAsyncContextManager[Engine]], Callable[[int], Mapping[str, Any]]]] = {
    "local": (local, local_weights),
    "sglang": (lambda _: sglang_over_toy(False), random_weights),
    "sglang-deterministic": (lambda _: sglang_over_toy(True), random_weights),
    "sglang-over-local": (sglang_over_local, local_weights),
    "mock": (lambda _: mock(), lambda _: {}),
}


@pytest.mark.parametrize("name", CASES)
async def test_engine_holds_its_contract(name: str, folder: Path) -> None:
    make, weights = CASES[name]
    blind = {"columns_are_given_or_refused", "masks_are_those_drawn_under"}  # the fake over an engine sees no whole rows
    skip = blind if name == "sglang-over-local" else set[str]()
    held = await check_engine(lambda: make(folder), weights=weights, skip=skip)
    assert len(held) == 39 - len(skip)


async def test_local_engine_and_sglang_over_it_give_the_same_logprobs(folder: Path) -> None:
    async with LocalEngine(folder, threads=1) as alone, sglang_over_local(folder) as wired:
        assert await check_same(alone, wired, prompts=3, tokens=12, atol=1e-5) <= 1e-5


async def test_engines_with_other_weights_are_not_the_same() -> None:
    async with (
        sglang_over_toy(True) as one,
        FakeSGLang(ToyModel.random(9)) as fake,
        SGLangEngine(fake.url, vocab_size=320) as other,
    ):
        with pytest.raises(EngineNonconforming, match="differ by up to"):
            await check_same(one, other, prompts=1, tokens=8)


async def test_suite_names_unknown_checks() -> None:
    with pytest.raises(UserError, match="no engine check is called nonsense"):
        await check_engine(mock, only=["nonsense"])


async def test_suite_leaves_publishing_out_without_weights() -> None:
    held = await check_engine(mock, only=["reply_has_shape", "publish_while_paused"])
    assert held == ("reply_has_shape",)


def test_toy_model_scores_what_its_tensors_say() -> None:
    model = ToyModel.random(3, vocab_size=11, width=4)
    embed, head = (model.tensors[name].astype(np.float64) for name in ("embed", "head"))
    for first, second, third in itertools.islice(itertools.product(range(11), repeat=3), 50):
        logits = head @ np.tanh(embed[second] + embed[first] / 2)
        expected = logits[third] - np.log(np.exp(logits).sum())
        assert model.score([first, second, third], 2)[0] == pytest.approx(expected, abs=1e-12)
