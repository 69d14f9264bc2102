"""Several policies as LoRA adapters of one SGLang server: loaded, swapped for new requests, unloaded when nobody uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import GenerateRequest, ScoreRequest, Weights
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel, random_weights, save_adapter
from agentrl.engines.sglang.fake.toy import with_adapter
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import EngineError, UserError
from agentrl.testing import check_engine

PROMPT = token_ids([71, 68, 75, 75, 78])


@pytest.fixture
async def fake() -> AsyncGenerator[FakeSGLang, None]:
    async with FakeSGLang(deterministic=True, lora=True) as server:
        yield server


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[int], Weights]:
    return lambda n: {"path": save_adapter(tmp_path / str(n), n)}


def client(fake: FakeSGLang, **more: Any) -> SGLangEngine:
    seconds = Seconds(request=5.0, control=1.0, publish=5.0)
    return SGLangEngine(fake.url, policy="base", adapters=("a", "b"), vocab_size=320, seconds=seconds, **more)


def version(policy: str, step: int) -> Version:
    return Version("run", policy, step, f"{step:04x}")


def ask(name: str, policy: str, sampling: Sampling | None = None) -> GenerateRequest:
    return GenerateRequest(name, policy, (PROMPT,), sampling or Sampling(max_tokens=4), 7)


async def scores(engine: SGLangEngine, policy: str) -> Any:
    return await engine.score(ScoreRequest("s", policy, PROMPT))


async def under_way(fake: FakeSGLang) -> None:
    """Returns once the fake samples something."""
    while not fake.scheduler.sampling:  # noqa: ASYNC110 - the fake runs in this loop and has nothing to wait for
        await asyncio.sleep(0)


def sent(fake: FakeSGLang, path: str) -> list[Any]:
    return [body for at, body in fake.requests if at == path]


async def test_engine_of_adapters_holds_the_contract(fake: FakeSGLang, adapter: Callable[[int], Weights]) -> None:
    held = await check_engine(lambda: client(fake), "a", weights=adapter, others=["b"])
    assert len(held) == 39


async def test_each_policy_scores_with_its_own_adapter(fake: FakeSGLang, adapter: Callable[[int], Weights]) -> None:
    base = ToyModel.random()
    async with client(fake) as engine:
        before = await scores(engine, "a")
        assert before.version == Version("server", "a", 0, "v0")
        assert np.allclose(before.logprobs, base.score(PROMPT.tolist(), 1), atol=1e-6)
        for number, policy in enumerate("ab"):
            await engine.publish(policy, adapter(number), version(policy, 1))
        for number, policy in enumerate("ab"):
            told = await scores(engine, policy)
            merged = with_adapter(base.tensors, Path(adapter(number)["path"]))
            assert told.version == version(policy, 1)
            assert np.allclose(told.logprobs, merged.score(PROMPT.tolist(), 1), atol=1e-6)
        assert (await scores(engine, "base")).version == Version("server", "base", 0, "v0")


async def test_request_keeps_the_adapter_it_began_with_until_it_ends(
    fake: FakeSGLang, adapter: Callable[[int], Weights]
) -> None:
    async with client(fake) as engine:
        await engine.publish("a", adapter(1), version("a", 1))
        running = asyncio.ensure_future(engine.generate(ask("long", "a", Sampling(max_tokens=1500))))
        await under_way(fake)
        async with asyncio.timeout(3):  # an unload now would wait for the request, and every load behind it
            await engine.publish("a", adapter(2), version("a", 2))
            await engine.publish("b", adapter(3), version("b", 1))
        assert not running.done() and not sent(fake, "/unload_lora_adapter")
        assert (await engine.generate(ask("new", "a"))).spans[0].version == version("a", 2)
        assert [span.version for span in (await running).spans] == [version("a", 1)]
        (unloaded,) = sent(fake, "/unload_lora_adapter")
        assert unloaded["lora_name"].startswith(f"{version('a', 1)}~")
        names = [body["lora_name"] for body in sent(fake, "/load_lora_adapter")]
    assert len({body["lora_name"] for body in sent(fake, "/unload_lora_adapter")}) == 3, "all are unloaded at the end"
    assert len(set(names)) == 3


async def test_cancelled_request_frees_its_adapter(fake: FakeSGLang, adapter: Callable[[int], Weights]) -> None:
    async with client(fake) as engine:
        await engine.publish("a", adapter(1), version("a", 1))
        running = asyncio.ensure_future(engine.generate(ask("long", "a", Sampling(max_tokens=1500))))
        await under_way(fake)
        await engine.publish("a", adapter(2), version("a", 2))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(sent(fake, "/unload_lora_adapter")) == 1


async def test_adapter_that_the_server_refuses_leaves_the_old_one_serving(
    fake: FakeSGLang, adapter: Callable[[int], Weights]
) -> None:
    async with client(fake) as engine:
        await engine.publish("a", adapter(1), version("a", 1))
        with pytest.raises(EngineError, match=r"does not take the adapter in /no/such/folder: Repo id must use"):
            await engine.publish("a", {"path": "/no/such/folder"}, version("a", 2))
        assert (await engine.generate(ask("r", "a"))).spans[0].version == version("a", 1) == engine.version("a")


async def test_what_is_no_adapter_is_refused_by_name(fake: FakeSGLang, tmp_path: Path) -> None:
    async with client(fake) as engine:
        with pytest.raises(UserError, match=r'policy \'a\' is an adapter; publish \{"path": folder'):
            await engine.publish("a", random_weights(1), version("a", 1))
        with pytest.raises(UserError, match=r"is no adapter's folder: it has no adapter_config\.json"):
            await engine.publish("a", {"path": tmp_path}, version("a", 1))
        with pytest.raises(UserError, match="'base' is the base of a, b; it is frozen: publish to those"):
            await engine.publish("base", random_weights(1), version("base", 1))
    assert not sent(fake, "/load_lora_adapter") and not sent(fake, "/update_weights_from_tensor")


async def test_server_without_lora_is_refused_at_the_start() -> None:
    async with FakeSGLang() as fake:
        with pytest.raises(UserError, match="takes no adapters; start it with --enable-lora"):
            async with client(fake):
                pass


async def test_base_that_another_publishes_to_is_noticed(fake: FakeSGLang, adapter: Callable[[int], Weights]) -> None:
    async with client(fake) as engine, SGLangEngine(fake.url, policy="base", vocab_size=320) as intruder:
        await engine.publish("a", adapter(1), version("a", 1))
        await intruder.publish("base", random_weights(3), version("base", 1))
        with pytest.raises(EngineError, match=r"its base was v0 and is run/base@1#0001; who publishes to the base"):
            await engine.generate(ask("r", "a"))


async def test_memory_with_the_base_in_it_is_not_released(fake: FakeSGLang) -> None:
    async with client(fake, memory_saver=True) as engine:
        assert not engine.info.offers.memory
        with pytest.raises(UserError, match="--enable-weights-cpu-backup, for no publish brings back the base of adapters"):
            await engine.release_memory()


async def test_memory_is_released_where_the_server_keeps_the_base() -> None:
    info = {"enable_weights_cpu_backup": True}
    async with FakeSGLang(lora=True, server_info=info) as fake, client(fake, memory_saver=True) as engine:
        await engine.release_memory()
        await engine.resume_memory()
        assert len((await engine.generate(ask("r", "a"))).ids) == 4
