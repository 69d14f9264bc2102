"""The SGLang client: what it sends, what it refuses, and that nothing hangs when the server misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.engines.contract import GenerateRequest, ScoreRequest
from agentrl.engines.http import error_reason
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import KNOWN_VERSIONS, SGLangEngine
from agentrl.engines.sglang.fake import FakeSGLang, ToyModel, random_weights
from agentrl.engines.sglang.weights import buckets, serialize
from agentrl.engines.sglang.wire import Versions
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError

PROMPT = token_ids([71, 68, 75, 75, 78])
ONE = Version("run", "policy", 1, "aa")


@pytest.fixture
async def fake() -> AsyncGenerator[FakeSGLang, None]:
    async with FakeSGLang(deterministic=True) as server:
        yield server


@pytest.fixture
async def engine(fake: FakeSGLang) -> AsyncGenerator[SGLangEngine, None]:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=5.0, control=0.5)) as client:
        yield client


def ask(name: str = "r", sampling: Sampling | None = None, **more: Any) -> GenerateRequest:
    return GenerateRequest(name, "policy", (PROMPT,), sampling or Sampling(max_tokens=4), more.pop("seed", 7), **more)


async def under_way(fake: FakeSGLang) -> None:
    """Returns once the fake samples something."""
    while not fake.scheduler.sampling:  # noqa: ASYNC110 - the fake runs in this loop and has nothing to wait for
        await asyncio.sleep(0)


def sent(fake: FakeSGLang, path: str) -> list[Any]:
    return [body for at, body in fake.requests if at == path]


async def test_body_carries_every_sampling_parameter(fake: FakeSGLang, engine: SGLangEngine) -> None:
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.9, max_tokens=3, stop_ids=(9,), stop=("zz",))
    await engine.generate(ask(sampling=sampling, seed=(5 << 40) + 11))
    (body,) = sent(fake, "/generate")
    assert body["sampling_params"] == {
        "temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_new_tokens": 3, "stop_token_ids": [9], "stop": ["zz"],
        "sampling_seed": 11,
    }  # fmt: skip
    assert body["input_ids"] == PROMPT.tolist() and body["return_logprob"] and body["return_prompt_token_ids"]
    assert body["logprob_start_len"] == -1 and "stream" not in body


async def test_request_without_stop_ids_ignores_the_models_own_end(engine: SGLangEngine) -> None:
    reply = await engine.generate(ask(sampling=Sampling(max_tokens=1500)))
    assert 258 in reply.ids.tolist()[:-1] and reply.finish == "length"


async def test_forced_prefix_is_sent_as_input_and_scored_from_the_token_before(fake: FakeSGLang, engine: SGLangEngine) -> None:
    await engine.generate(ask(forced=token_ids([1, 2])))
    (body,) = sent(fake, "/generate")
    assert body["input_ids"] == [*PROMPT.tolist(), 1, 2]
    assert body["logprob_start_len"] == 4 and body["sampling_params"]["max_new_tokens"] == 2


async def test_forced_logprobs_are_nan_where_the_server_cannot_give_them(engine: SGLangEngine) -> None:
    reply = await engine.generate(ask(sampling=Sampling(temperature=0.5, max_tokens=4), forced=token_ids([1, 2])))
    assert np.isnan(reply.logprobs).tolist() == [True, True, False, False]


async def test_last_id_of_the_vocabulary_is_scored_though_the_server_misnames_it(engine: SGLangEngine) -> None:
    scores = await engine.score(ScoreRequest("s", "policy", token_ids([5, 6, 319, 7])))
    assert np.allclose(scores.logprobs, ToyModel.random().score([5, 6, 319, 7], 1), atol=1e-6)
    reply = await engine.generate(ask(forced=token_ids([319])))
    assert reply.ids[0] == 319 and np.isfinite(reply.logprobs).all()


async def test_digest_is_of_what_the_server_saw(fake: FakeSGLang, engine: SGLangEngine) -> None:
    honest = fake.scheduler.runs
    task = asyncio.ensure_future(engine.generate(ask(sampling=Sampling(max_tokens=800))))
    await under_way(fake)
    next(iter(honest.values())).prompt[0] = 1  # a server that continued another prompt than it was sent
    reply = await task
    straight = await engine.generate(ask("again", Sampling(max_tokens=800)))
    assert reply.digest != straight.digest


async def test_startup_version_becomes_step_0_of_the_server(engine: SGLangEngine) -> None:
    assert engine.version("policy") == Version("server", "policy", 0, "v0")


def test_version_strings_map_both_ways() -> None:
    versions = Versions("policy", {})
    assert versions.of(str(ONE)) == ONE
    assert versions.of("default").digest == "default"
    assert versions.of(str(Version("run", "other", 3))) == Version("server", "policy", 0, "run/other@3#")


async def test_kv_is_told_as_recomputed_only_after_a_retract(fake: FakeSGLang, engine: SGLangEngine) -> None:
    for mode, kv, number in (("in_place", "kept", 1), ("retract", "recomputed", 2)):
        task = asyncio.ensure_future(engine.generate(ask(sampling=Sampling(max_tokens=1500))))
        await under_way(fake)
        await engine.pause("retract" if mode == "retract" else "in_place")
        await engine.publish("policy", random_weights(number), replace(ONE, step=number))
        await engine.resume()
        assert [span.kv for span in (await task).spans] == ["kept", kv]


async def test_prefix_caches_are_keyed_by_version(fake: FakeSGLang, engine: SGLangEngine) -> None:
    assert [(await engine.generate(ask(str(n)))).cached_tokens for n in range(2)] == [0, 4]
    await engine.publish("policy", random_weights(1), ONE)
    assert [(await engine.generate(ask(str(n)))).cached_tokens for n in range(2)] == [0, 4]


async def test_tensors_go_in_buckets_inside_one_session(fake: FakeSGLang) -> None:
    async with SGLangEngine(fake.url, vocab_size=320, bucket_bytes=1) as engine:
        await engine.publish("policy", random_weights(4), ONE)
        scores = await engine.score(ScoreRequest("s", "policy", PROMPT))
    assert np.allclose(scores.logprobs, ToyModel.random(4).score(PROMPT.tolist(), 1), atol=1e-6)
    calls = [path for path, _ in fake.requests if "weight" in path or "generation" in path]
    assert calls == [
        "/pause_generation", "/begin_weight_update", "/update_weights_from_tensor", "/update_weights_from_tensor",
        "/end_weight_update", "/continue_generation",
    ]  # fmt: skip
    assert ["weight_version" in body for body in sent(fake, "/update_weights_from_tensor")] == [False, True]


def test_views_are_sent_without_the_storage_they_look_into() -> None:
    large = torch.zeros(1 << 20)
    assert len(serialize(next(buckets({"a": large[:10]}, 1 << 30)))) < 2000


async def test_publish_from_a_folder(fake: FakeSGLang, engine: SGLangEngine, tmp_path: Path) -> None:
    ToyModel.random(6).save(tmp_path)
    await engine.publish("policy", {"path": tmp_path}, ONE)
    ids = token_ids([3, 4, 5])
    scores = await engine.score(ScoreRequest("s", "policy", ids))
    assert scores.version == ONE and np.allclose(scores.logprobs, ToyModel.random(6).score([3, 4, 5], 1), atol=1e-6)


async def test_refused_folder_leaves_the_engine_running_on_its_old_weights(engine: SGLangEngine) -> None:
    with pytest.raises(EngineError, match=r"/update_weights_from_disk answered 400"):
        await engine.publish("policy", {"path": "/no/such/folder"}, ONE)
    assert engine.version("policy").step == 0
    assert len((await engine.generate(ask())).ids) == 4


async def test_update_that_fails_half_way_refuses_requests_until_a_publish(fake: FakeSGLang, engine: SGLangEngine) -> None:
    fake.fail("/update_weights_from_tensor", "500")
    with pytest.raises(EngineError):
        await engine.publish("policy", random_weights(1), ONE)
    with pytest.raises(EngineError, match=r"weights may be a mixture; publish again"):
        await engine.generate(ask())
    await engine.publish("policy", random_weights(1), ONE)
    assert (await engine.generate(ask())).spans[0].version == ONE


async def test_weights_of_another_kind_are_refused_by_name(engine: SGLangEngine) -> None:
    with pytest.raises(UserError, match=r"weights\['embed'\] is a list"):
        await engine.publish("policy", {"embed": [1, 2]}, ONE)
    assert len((await engine.generate(ask())).ids) == 4, "nothing was sent, so the old weights are whole"


async def test_cancelled_publish_goes_on_to_its_end(fake: FakeSGLang, engine: SGLangEngine) -> None:
    task = asyncio.ensure_future(engine.publish("policy", random_weights(1), ONE))
    while not sent(fake, "/begin_weight_update"):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reply = await engine.generate(ask())  # waits until the publish has resumed the engine
    assert reply.spans[0].version == ONE and engine.version("policy") == ONE


async def test_unknown_server_version_is_refused_with_what_to_do() -> None:
    async with FakeSGLang(version="0.4.9") as fake:
        with pytest.raises(UserError, match=r"version 0\.4\.9; known are 0\.5\.23.*known_versions"):
            async with SGLangEngine(fake.url, vocab_size=320):
                pass
        async with SGLangEngine(fake.url, vocab_size=320, known_versions=KNOWN_VERSIONS | {"0.4.9"}) as engine:
            assert engine.info.name == "sglang 0.4.9"


async def test_vocabulary_is_read_from_the_models_folder_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 320}))
    async with FakeSGLang(model_path=str(tmp_path)) as fake, SGLangEngine(fake.url) as engine:
        assert engine.info.vocab_size == 320
    async with FakeSGLang(model_path="not/here") as fake:
        with pytest.raises(UserError, match="pass vocab_size"):
            async with SGLangEngine(fake.url):
                pass


async def test_deterministic_is_offered_only_when_the_server_was_started_so(engine: SGLangEngine) -> None:
    assert engine.info.offers.deterministic
    async with FakeSGLang() as plain, SGLangEngine(plain.url, vocab_size=320) as other:
        assert not other.info.offers.deterministic


async def test_health_is_asked_of_model_info_and_answers_while_paused(fake: FakeSGLang, engine: SGLangEngine) -> None:
    await engine.pause()
    await engine.healthy()
    assert not sent(fake, "/health")


async def test_dead_server_is_named_at_the_start() -> None:
    fake = FakeSGLang()
    async with fake:
        url = fake.url
    with pytest.raises(EngineError, match=rf"SGLang at {url}: GET /server_info failed.*check that the server runs"):
        async with SGLangEngine(url, vocab_size=320):
            pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("drop", "POST /generate failed.*check that the server runs"),
        ("garbage", "no JSON.*proxy"),
        ("500", "answered 500: Internal server error"),
        ("never", r"POST /generate had no answer within 1 s"),
        ("drip", r"POST /generate had no answer within 1 s"),
    ],
)
async def test_fault_of_the_server_is_an_error_that_names_it(fake: FakeSGLang, kind: Any, message: str) -> None:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=1.0, control=0.5)) as engine:
        fake.fail("/generate", kind)
        with pytest.raises(EngineError, match=message) as caught:
            await engine.generate(ask())
        assert fake.url in str(caught.value)
        assert caught.value.retryable == (kind != "garbage")
        assert len((await engine.generate(ask())).ids) == 4


async def test_server_that_dies_fails_every_request_at_once(fake: FakeSGLang, engine: SGLangEngine) -> None:
    tasks = [asyncio.ensure_future(engine.generate(ask(str(n), Sampling(max_tokens=1500)))) for n in range(8)]
    await under_way(fake)
    await fake.kill()
    results = await asyncio.wait_for(asyncio.wait(tasks), 5)
    assert all(isinstance(task.exception(), EngineError) for task in results[0]) and len(results[0]) == 8


async def test_stuck_control_call_ends_at_its_deadline(fake: FakeSGLang, engine: SGLangEngine) -> None:
    fake.fail("/pause_generation", "never")
    with pytest.raises(EngineError, match=r"/pause_generation had no answer within 0\.5 s"):
        await engine.pause()
    assert len((await engine.generate(ask())).ids) == 4


async def test_time_spent_paused_does_not_count_for_the_deadline(fake: FakeSGLang) -> None:
    async with SGLangEngine(fake.url, vocab_size=320, seconds=Seconds(request=2.0)) as engine:
        task = asyncio.ensure_future(engine.generate(ask(sampling=Sampling(max_tokens=1500))))
        await under_way(fake)
        await engine.pause()
        done, _ = await asyncio.wait([task], timeout=2.3)
        assert not done
        await engine.resume()
        assert len((await task).ids) == 1500


async def test_cancelled_request_is_aborted_on_the_server(fake: FakeSGLang, engine: SGLangEngine) -> None:
    task = asyncio.ensure_future(engine.generate(ask(sampling=Sampling(max_tokens=1500))))
    await under_way(fake)
    (rid,) = fake.scheduler.runs
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent(fake, "/abort_request") == [{"rid": rid}]


async def test_cancelling_is_bounded_when_the_server_does_not_answer_the_abort(fake: FakeSGLang, engine: SGLangEngine) -> None:
    task = asyncio.ensure_future(engine.generate(ask(sampling=Sampling(max_tokens=1500))))
    await under_way(fake)
    fake.fail("/abort_request", "never")
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=3)
    assert done and task.cancelled()


async def test_ids_are_refused_before_they_are_sent(fake: FakeSGLang, engine: SGLangEngine) -> None:
    bad = GenerateRequest("r", "policy", (token_ids([320]),), Sampling(), 0)
    with pytest.raises(UserError, match="token id 320 is outside the vocabulary of 320"):
        await engine.generate(bad)
    with pytest.raises(UserError, match="empty prompt"):
        await engine.generate(replace(bad, parts=()))
    with pytest.raises(UserError, match="5 forced tokens, but max_tokens is 4"):
        await engine.generate(ask(forced=PROMPT))
    assert not sent(fake, "/generate")


async def test_overflow_told_by_the_server_is_an_overflow_here(fake: FakeSGLang, engine: SGLangEngine) -> None:
    fake.limits = replace(fake.limits, context=20)  # smaller than it said at the start
    with pytest.raises(ContextOverflow, match="answered 400"):
        await engine.generate(ask(sampling=Sampling(max_tokens=100)))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"error":{"message":"Duplicate request ID detected: dup-1"}}', "Duplicate request ID detected: dup-1"),
        ('{"error":"unknown field `nope`"}', "unknown field `nope`"),
        ('{"object":"error","message":"1 validation error","code":400}', "1 validation error"),
        ('{"success":false,"message":"no session"}', "no session"),
        ("Flush cache failed.\n", "Flush cache failed."),
        ("[1]", "[1]"),
    ],
)
def test_error_bodies_of_all_shapes_are_read(body: str, reason: str) -> None:
    assert error_reason(body) == reason


@pytest.mark.parametrize("missing", ["prompt_token_ids", "output_ids", "meta_info"])
async def test_reply_that_lacks_a_field_is_refused(
    fake: FakeSGLang, engine: SGLangEngine, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake._reply  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(fake, "_reply", lambda body, run: {k: v for k, v in whole(body, run).items() if k != missing})
    with pytest.raises(EngineError, match=f"the reply lacks '{missing}'"):
        await engine.generate(ask())


@pytest.mark.parametrize("missing", ["output_token_logprobs", "input_token_logprobs", "weight_versions", "finish_reason"])
async def test_reply_without_logprobs_or_versions_is_refused(
    fake: FakeSGLang, engine: SGLangEngine, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake._reply  # pyright: ignore[reportPrivateUsage]

    def without(body: Any, run: Any) -> dict[str, Any]:
        reply = whole(body, run)
        del reply["meta_info"][missing]
        return reply

    monkeypatch.setattr(fake, "_reply", without)
    with pytest.raises(EngineError, match=f"the reply lacks '{missing}'; is its version a known one"):
        await engine.generate(ask(forced=token_ids([1])))


async def test_logprobs_of_other_tokens_are_refused(
    fake: FakeSGLang, engine: SGLangEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fake._reply  # pyright: ignore[reportPrivateUsage]

    def shifted(body: Any, run: Any) -> dict[str, Any]:
        reply = whole(body, run)
        reply["meta_info"]["output_token_logprobs"].append([0.0, 1, None])
        return reply

    monkeypatch.setattr(fake, "_reply", shifted)
    with pytest.raises(EngineError, match="5 log-probs that are not those of its 4 tokens"):
        await engine.generate(ask())


async def test_a_thousand_requests_at_once_are_all_answered(fake: FakeSGLang) -> None:
    async with SGLangEngine(fake.url, vocab_size=320) as engine, asyncio.TaskGroup() as group:
        tasks = [group.create_task(engine.generate(ask(str(n), Sampling(max_tokens=2), seed=n))) for n in range(1000)]
    assert {len(task.result().ids) for task in tasks} == {2}
