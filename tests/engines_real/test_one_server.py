"""The contract of an engine, held by the real servers; what our fakes get wrong shows here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl.engines.local import LocalEngine
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.vllm import VLLMEngine
from agentrl.episode import Version
from agentrl.testing import check_engine, check_same
from agentrl.transformer.weights import load_weights
from tests.engines_real.environment import perturbed

pytestmark = [pytest.mark.engines, pytest.mark.timeout(400)]

ENGINES = {"sglang": SGLangEngine, "vllm": VLLMEngine}
SAME = 1e-4


@pytest.fixture(params=ENGINES)
def make(model: Path, request: pytest.FixtureRequest) -> Callable[[], SGLangEngine | VLLMEngine]:
    """The client of a server, which is started when it is first needed."""
    url = request.getfixturevalue(f"{request.param}_url")
    return lambda: ENGINES[request.param](url, model=model)


async def test_the_server_holds_the_contract(make: Callable[[], SGLangEngine | VLLMEngine], model: Path) -> None:
    held = await check_engine(make, weights=perturbed(model))
    assert len(held) == 39


async def test_the_server_and_the_local_engine_give_the_same_logprobs_after_every_publish(
    make: Callable[[], SGLangEngine | VLLMEngine], model: Path
) -> None:
    given = [perturbed(model)(1), perturbed(model)(2), load_weights(model)]
    async with LocalEngine(model, threads=1) as local, make() as server:
        for step, weights in enumerate(given):
            for engine in (local, server):
                await engine.publish("policy", weights, Version("same", "policy", step, f"0000000{step}"))
            assert await check_same(local, server, prompts=4, tokens=32, atol=SAME) <= SAME
