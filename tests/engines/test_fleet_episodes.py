"""What a lost server means for episodes: with a fleet nothing; with one server and no fleet, they are lost and say why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from agentrl.engines.contract import Engine
from agentrl.engines.fleet import SGLangFleet
from agentrl.engines.local import LocalEngine
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang
from agentrl.episode import Episode
from agentrl.runtime.runtime import Runtime
from tests.train.small import small, tiny_model

EPISODES = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def fakes(model: Path, count: int) -> AsyncGenerator[list[FakeSGLang], None]:
    """Servers of the real model, slow enough to be killed in the midst of a reply."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                FakeSGLang(
                    await stack.enter_async_context(LocalEngine({"searcher": model}, threads=1)),
                    policy="searcher", context=512, eos=-1, token_s=0.003, model_path=str(model),
                )
            )
            for _ in range(count)
        ]  # fmt: skip


async def episodes(model: Path, engine: Engine, dies: FakeSGLang) -> list[Episode]:
    """In whose midst a server dies."""
    experiment = small(model)
    async with Runtime(experiment, engine=engine) as runtime, asyncio.TaskGroup() as group:
        tasks = [group.create_task(runtime.run(task)) for task in experiment.tasks[:EPISODES]]
        async with asyncio.timeout(30):
            while not dies.scheduler.runs:  # noqa: ASYNC110 - looks at a fake, which has no event for it
                await asyncio.sleep(0.005)
        await dies.kill()
    return [task.result() for task in tasks]


async def test_episodes_of_a_fleet_outlive_one_of_its_servers(model: Path, tmp_path: Path) -> None:
    async with (
        fakes(model, 2) as servers,
        SGLangFleet([server.url for server in servers], logs=tmp_path, policy="searcher", probe_s=0.1) as fleet,
    ):
        ended = await episodes(model, fleet, servers[1])
        assert fleet.live == (servers[0].url,)
    assert {episode.status for episode in ended} <= {"done", "overlong"}


async def test_episodes_of_a_server_that_stays_away_fail_by_the_engine_and_have_no_reward(model: Path) -> None:
    async with fakes(model, 1) as servers, SGLangEngine(servers[0].url, policy="searcher") as engine:
        ended = await episodes(model, engine, servers[0])
    assert [episode.status for episode in ended] == ["failed"] * EPISODES
    assert {episode.failure.fault for episode in ended if episode.failure} == {"engine"}
    assert [episode.rewards for episode in ended] == [()] * EPISODES
