"""Weights over SGLang's wire by each of the three ways, memory released to a learner, and what a failure on the way leaves."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.engines.contract import GenerateRequest, ScoreRequest
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel, random_weights
from agentrl.engines.sglang.weights import Way
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import EngineError, UserError
from agentrl.testing import check_engine
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.weights import init_weights, save_weights

PROMPT = token_ids([71, 68, 75, 75, 78])
ONE = Version("run", "policy", 1, "aa")
SECONDS = Seconds(request=5.0, control=2.0, publish=5.0)
PUBLISHING = (
    "publish_changes_version_and_weights", "publish_in_flight_gives_two_spans", "publish_while_paused",
    "publish_follows_released_memory",
)  # fmt: skip


@pytest.fixture
async def fake() -> AsyncGenerator[FakeSGLang, None]:
    async with FakeSGLang(deterministic=True) as server:
        yield server


def client(fake: FakeSGLang, **more: Any) -> SGLangEngine:
    return SGLangEngine(fake.url, vocab_size=320, seconds=SECONDS, **more)


def ask(name: str = "r", sampling: Sampling | None = None, **more: Any) -> GenerateRequest:
    return GenerateRequest(name, "policy", (PROMPT,), sampling or Sampling(max_tokens=4), 7, **more)


async def under_way(fake: FakeSGLang) -> None:
    """Returns once the fake samples something."""
    while not fake.scheduler.sampling:  # noqa: ASYNC110 - the fake runs in this loop and has nothing to wait for
        await asyncio.sleep(0)


def sent(fake: FakeSGLang, path: str) -> list[Any]:
    return [body for at, body in fake.requests if at == path]


async def scores(engine: SGLangEngine) -> Any:
    return (await engine.score(ScoreRequest("s", "policy", PROMPT))).logprobs


@pytest.mark.parametrize("way", ["disk", "group"])
async def test_way_of_publishing_holds_the_contract(fake: FakeSGLang, way: Way) -> None:
    await check_engine(lambda: client(fake, weights=way, memory_saver=True), weights=random_weights, only=PUBLISHING)


async def test_disk_writes_below_the_exchange_folder_and_leaves_nothing(fake: FakeSGLang, tmp_path: Path) -> None:
    async with client(fake, weights="disk", exchange=tmp_path) as engine:
        await engine.publish("policy", random_weights(4), ONE)
        assert np.allclose(await scores(engine), ToyModel.random(4).score(PROMPT.tolist(), 1), atol=1e-6)
    (body,) = sent(fake, "/update_weights_from_disk")
    assert Path(body["model_path"]).parent == tmp_path and not os.listdir(tmp_path)


async def test_group_sends_in_buckets_and_touches_no_group_of_the_learner(fake: FakeSGLang) -> None:
    async with client(fake, weights="group", bucket_bytes=1) as engine:
        await engine.publish("policy", random_weights(4), ONE)
        await engine.publish("policy", random_weights(5), replace(ONE, step=2))
        assert np.allclose(await scores(engine), ToyModel.random(5).score(PROMPT.tolist(), 1), atol=1e-6)
        assert not torch.distributed.is_initialized()
    assert len(sent(fake, "/init_weights_update_group")) == 1, "one group for all publishes"
    assert [body["names"] for body in sent(fake, "/update_weights_from_distributed")] == [["embed"], ["head"]] * 2
    assert len(sent(fake, "/destroy_weights_update_group")) == 1


async def test_group_that_the_server_does_not_join_ends_at_its_deadline(fake: FakeSGLang) -> None:
    patience = Seconds(request=5.0, control=0.5, publish=5.0)
    async with SGLangEngine(fake.url, vocab_size=320, weights="group", seconds=patience) as engine:
        fake.fail("/init_weights_update_group", "never")
        with pytest.raises(EngineError, match=r"/init_weights_update_group had no answer within 0\.5 s"):
            await engine.publish("policy", random_weights(1), ONE)
        assert len((await engine.generate(ask())).ids) == 4, "nothing was sent, so the old weights are whole"
        await engine.publish("policy", random_weights(1), ONE)
        assert engine.version("policy") == ONE


async def test_group_that_breaks_is_joined_anew_by_the_next_publish(fake: FakeSGLang) -> None:
    async with client(fake, weights="group") as engine:
        await engine.publish("policy", random_weights(1), ONE)
        fake.fail("/update_weights_from_distributed", "500")
        with pytest.raises(EngineError, match="/update_weights_from_distributed answered 500"):
            await engine.publish("policy", random_weights(2), replace(ONE, step=2))
        with pytest.raises(EngineError, match="may be a mixture"):
            await engine.generate(ask())
        gc.collect()  # the group that broke goes before the next comes
        await engine.publish("policy", random_weights(2), replace(ONE, step=2))
        assert np.allclose(await scores(engine), ToyModel.random(2).score(PROMPT.tolist(), 1), atol=1e-6)
    names = [body["group_name"] for body in sent(fake, "/init_weights_update_group")]
    assert len(set(names)) == 2


@pytest.mark.parametrize("way", ["tensors", "disk", "group"])
async def test_server_that_dies_in_mid_publish_is_named_and_everything_ends(fake: FakeSGLang, way: Way) -> None:
    async with client(fake, weights=way) as engine:
        running = asyncio.ensure_future(engine.generate(ask("running", Sampling(max_tokens=1500))))
        await under_way(fake)
        path = {"disk": "disk", "tensors": "tensor", "group": "distributed"}[way]
        loading = fake.scheduler.served.load

        async def die(weights: Any, version: str) -> None:
            await fake.kill()
            await loading(weights, version)

        fake.scheduler.served.load = die  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            with pytest.raises(EngineError, match=f"SGLang at {fake.url}: POST /") as caught:
                await engine.publish("policy", random_weights(1), ONE)
            with pytest.raises(EngineError):
                await running
            with pytest.raises(EngineError, match=f"update_weights_from_{path} did not come to its end"):
                await engine.generate(ask())
        assert caught.value.retryable


async def test_requests_that_run_through_a_failed_publish_are_not_answered_with_a_mixture(fake: FakeSGLang) -> None:
    async with client(fake) as engine:
        running = asyncio.ensure_future(engine.generate(ask("running", Sampling(max_tokens=1500))))
        await under_way(fake)
        fake.fail("/update_weights_from_tensor", "500")
        with pytest.raises(EngineError, match="answered 500"):
            await engine.publish("policy", random_weights(1), ONE)
        with pytest.raises(EngineError, match=r"publish failed half way while 'running' ran.*repeat the request") as caught:
            await running
        assert caught.value.retryable


async def test_scores_that_new_weights_overtook_are_asked_for_again(fake: FakeSGLang, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, go_on, run = asyncio.Event(), asyncio.Event(), fake.scheduler.run

    async def answered_late(one: Any, emit: Any = None) -> None:
        await run(one, emit)  # by the old weights; the answer will be under the new version
        scored.set()
        await go_on.wait()

    monkeypatch.setattr(fake.scheduler, "run", answered_late)
    async with client(fake) as engine:
        task = asyncio.ensure_future(engine.score(ScoreRequest("s", "policy", PROMPT)))
        await scored.wait()
        await engine.publish("policy", random_weights(3), ONE)
        go_on.set()
        told = await task
    assert told.version == ONE and len(sent(fake, "/generate")) == 2
    assert np.allclose(told.logprobs, ToyModel.random(3).score(PROMPT.tolist(), 1), atol=1e-6)


async def test_caches_of_a_version_published_twice_are_apart(fake: FakeSGLang) -> None:
    async with client(fake) as engine:
        for number in range(2):
            await engine.publish("policy", random_weights(1), ONE)
            assert (await engine.generate(ask(str(number)))).cached_tokens == 0


async def test_memory_is_refused_where_the_server_has_no_saver(fake: FakeSGLang) -> None:
    async with client(fake) as engine:
        assert not engine.info.offers.memory
        with pytest.raises(UserError, match="cannot release its memory; start it with --enable-memory-saver"):
            await engine.release_memory()
    assert not sent(fake, "/release_memory_occupation")


async def test_memory_is_offered_by_a_server_with_a_saver() -> None:
    async with FakeSGLang(server_info={"enable_memory_saver": True}) as fake, client(fake) as engine:
        assert engine.info.offers.memory


async def test_nothing_is_asked_of_a_server_without_its_memory(fake: FakeSGLang) -> None:
    async with client(fake, memory_saver=True) as engine:
        await engine.release_memory()
        await engine.release_memory()
        for call in (engine.generate(ask()), engine.score(ScoreRequest("s", "policy", PROMPT))):
            with pytest.raises(EngineError, match=r"its memory is released to the learner; call resume_memory\(\)"):
                await call
        with pytest.raises(UserError, match=r"call resume_memory\(\) before publishing"):
            await engine.publish("policy", random_weights(1), ONE)
        await engine.resume_memory()
        await engine.resume_memory()
        with pytest.raises(EngineError, match="it released its memory, and its weights with it; publish again"):
            await engine.generate(ask())
        await engine.publish("policy", random_weights(1), ONE)
        assert (await engine.generate(ask())).spans[0].version == ONE
    assert len(sent(fake, "/release_memory_occupation")) == len(sent(fake, "/resume_memory_occupation")) == 1
    assert not fake.dead


async def test_memory_that_requests_hold_is_not_released(fake: FakeSGLang) -> None:
    async with client(fake, memory_saver=True) as engine:
        running = asyncio.ensure_future(engine.generate(ask("running", Sampling(max_tokens=1500))))
        await under_way(fake)
        for pause in (None, "in_place"):
            if pause is not None:
                await engine.pause("in_place")
            with pytest.raises(UserError, match=r'1 requests hold its cache; pause\("retract"\) before release_memory'):
                await engine.release_memory()
        await engine.resume()
        await engine.pause("retract")
        await engine.release_memory()
        with pytest.raises(UserError, match=r"call resume_memory\(\) and publish before resume"):
            await engine.resume()
        await engine.resume_memory()
        await engine.publish("policy", random_weights(1), ONE)
        await engine.resume()
        assert [span.version.step for span in (await running).spans] == [0, 1]


CONFIG = ModelConfig(
    "Qwen3ForCausalLM", vocab_size=320, hidden_size=16, layers=1, heads=2, kv_heads=1, head_dim=8, intermediate_size=16,
    max_positions=64, tied=False,
)  # fmt: skip


@pytest.mark.parametrize("as_folder", [False, True])
async def test_weights_of_another_model_are_refused_before_they_kill_the_server(tmp_path: Path, as_folder: bool) -> None:
    save_weights(tmp_path / "model", CONFIG, init_weights(CONFIG, seed=0))
    wrong = replace(CONFIG, hidden_size=32)
    save_weights(tmp_path / "wrong", wrong, init_weights(wrong, seed=0))
    async with FakeSGLang() as fake, SGLangEngine(fake.url, model=None, vocab_size=320) as unseen:
        assert unseen.info.vocab_size == 320
    async with FakeSGLang(model_path=str(tmp_path / "model")) as fake, SGLangEngine(fake.url) as engine:
        weights = {"path": tmp_path / "wrong"} if as_folder else init_weights(wrong, seed=0)
        with pytest.raises(
            UserError, match=r"does not fit the served model: lm_head\.weight has shape \(320, 32\), not \(320, 16\)"
        ):
            await engine.publish("policy", weights, ONE)
        assert not any("update_weights" in path for path, _ in fake.requests)
        assert len((await engine.generate(ask())).ids) == 4


async def test_split_server_is_refused_for_tensors() -> None:
    async with FakeSGLang(server_info={"dp_size": 2}) as fake:
        with pytest.raises(UserError, match=r"dp_size 2 and pp_size 1.*start one server for each replica"):
            async with client(fake):
                pass


CONTROL = (
    "/pause_generation", "/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update", "/model_info",
    "/continue_generation",
)  # fmt: skip


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize("kind", ["never", "drip", "drop", "garbage"])
async def test_publish_ends_in_time_whichever_call_goes_wrong(path: str, kind: Any) -> None:
    seconds = Seconds(request=2.0, control=0.2, publish=0.2)
    async with FakeSGLang() as fake, SGLangEngine(fake.url, vocab_size=320, seconds=seconds) as engine:
        fake.fail(path, kind, times=2 if path == "/continue_generation" else 1)
        async with asyncio.timeout(6):
            with pytest.raises(EngineError, match=f"SGLang at {fake.url}: (GET|POST) {path} "):
                await engine.publish("policy", random_weights(1), ONE)
            if path in ("/pause_generation", "/begin_weight_update"):  # nothing was changed yet
                assert len((await engine.generate(ask())).ids) == 4
            elif path != "/continue_generation":
                with pytest.raises(EngineError, match="may be a mixture; publish again"):
                    await engine.generate(ask())


@pytest.mark.parametrize("kind", ["never", "drip", "drop", "garbage", "500"])
@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation", "/model_info"])
async def test_other_control_calls_end_in_time(path: str, kind: Any) -> None:
    seconds = Seconds(request=2.0, control=0.2, publish=0.2)
    async with FakeSGLang() as fake, SGLangEngine(fake.url, vocab_size=320, seconds=seconds, memory_saver=True) as engine:
        fake.fail(path, kind)
        call = {
            "/release_memory_occupation": engine.release_memory, "/resume_memory_occupation": engine.resume_memory,
            "/model_info": engine.healthy,
        }[path]  # fmt: skip
        if path == "/resume_memory_occupation":
            await engine.release_memory()
        async with asyncio.timeout(3):
            with pytest.raises(EngineError, match=f"SGLang at {fake.url}: (GET|POST) {path} "):
                await call()


@pytest.mark.parametrize(("mode", "flushed"), [("in_place", False), ("retract", True), ("abort", True)])
async def test_update_flushes_the_cache_unless_requests_hold_it(fake: FakeSGLang, mode: Any, flushed: bool) -> None:
    async with client(fake) as engine:
        running = asyncio.ensure_future(engine.generate(ask("running", Sampling(max_tokens=1500))))
        await under_way(fake)
        await engine.pause(mode)
        await engine.publish("policy", random_weights(1), ONE)
        await engine.resume()
        assert (await running).finish == ("abort" if mode == "abort" else "length")
    assert [body["flush_cache"] for body in sent(fake, "/update_weights_from_tensor")] == [flushed]
    assert not fake.dead


async def test_resume_is_asked_for_again_when_its_answer_is_lost(fake: FakeSGLang) -> None:
    async with client(fake) as engine:
        await engine.pause()
        fake.fail("/continue_generation", "drop")
        await engine.resume()
        assert len((await engine.generate(ask())).ids) == 4


async def test_pause_whose_answer_is_lost_leaves_nothing_paused(fake: FakeSGLang) -> None:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=2.0, control=0.3)) as engine:
        fake.fail("/pause_generation", "drip")
        with pytest.raises(EngineError, match=r"/pause_generation had no answer within 0\.3 s"):
            await engine.pause()
        assert len((await engine.generate(ask())).ids) == 4


async def test_publish_that_fails_and_cannot_resume_tells_both(fake: FakeSGLang) -> None:
    async with client(fake) as engine:
        fake.fail("/update_weights_from_tensor", "500")
        fake.fail("/continue_generation", "500", times=2)
        both = "/update_weights_from_tensor answered 500.* and then it did not resume: .*/continue_generation answered 500"
        with pytest.raises(EngineError, match=both):
            await engine.publish("policy", random_weights(1), ONE)
        await engine.publish("policy", random_weights(1), ONE)
        assert len((await engine.generate(ask())).ids) == 4


async def test_publish_into_a_folder_that_is_not_there_is_refused_and_the_engine_serves_on(fake: FakeSGLang) -> None:
    async with client(fake, weights="disk", exchange="/no/such/folder") as engine:
        with pytest.raises(UserError, match="no folder can be made below exchange='/no/such/folder'"):
            await engine.publish("policy", random_weights(1), ONE)
        assert len((await engine.generate(ask())).ids) == 4


async def test_error_of_no_class_of_ours_reaches_the_publisher_alone(fake: FakeSGLang, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*given: Any) -> None:
        raise OSError("no space left on device")

    async with client(fake) as engine:
        monkeypatch.setattr(engine, "_load", full)
        with pytest.raises(OSError, match="no space left"):
            await engine.publish("policy", random_weights(1), ONE)
        assert len((await engine.generate(ask())).ids) == 4


async def test_folder_is_told_by_its_absolute_path(fake: FakeSGLang, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with client(fake) as engine:
        with pytest.raises(EngineError):
            await engine.publish("policy", {"path": "new"}, ONE)
    assert sent(fake, "/update_weights_from_disk")[0]["model_path"] == str(tmp_path / "new")
