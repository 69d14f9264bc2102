"""Several SGLang servers behind SGLang's own router: one engine, which loses servers and no requests."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from agentrl.config.settings import put_settings
from agentrl.engines.contract import GenerateRequest, Generation, Weights
from agentrl.engines.fleet import SGLangFleet
from agentrl.engines.launch import Command, free_port
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang.fake import FakeSGLang, random_weights
from agentrl.engines.specs import SGLang
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import EngineError, UserError
from agentrl.testing import check_engine

PROMPT = token_ids([5, 6, 7, 8])
SECONDS = Seconds(request=60, control=20, publish=20)
SLOW_S = 0.01


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """The router asks a new server first whether it speaks gRPC, which aiohttp tells as an error."""
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def request(name: str, *, tokens: int = 4, session: str = "", seed: int = 0) -> GenerateRequest:
    return GenerateRequest(name, "policy", (PROMPT,), Sampling(max_tokens=tokens), seed, session=session)


def version(step: int) -> Version:
    return Version("run", "policy", step, f"{step:08x}")


def fleet_of(servers: Sequence[str | Command], logs: Path, *, probe_s: float = 0.1, seconds: Seconds = SECONDS) -> SGLangFleet:
    return SGLangFleet(servers, logs=logs, vocab_size=320, seconds=seconds, probe_s=probe_s)


@asynccontextmanager
async def two(
    logs: Path, *, token_s: float = 0.0, probe_s: float = 0.1
) -> AsyncGenerator[tuple[SGLangFleet, FakeSGLang, FakeSGLang], None]:
    async with (
        FakeSGLang(token_s=token_s) as a,
        FakeSGLang(token_s=token_s) as b,
        fleet_of([a.url, b.url], logs, probe_s=probe_s) as fleet,
    ):
        yield fleet, a, b


def process(number: int = 0, token_s: float = 0.0) -> Command:
    port = free_port()
    program = str(Path(__file__).with_name("fake_process.py"))
    path = os.pathsep.join(path for path in sys.path if path)
    return Command(
        f"fake-{number}", (sys.executable, program, str(port), str(token_s)), f"http://127.0.0.1:{port}", "/model_info",
        {"PYTHONPATH": path}, grace_s=0,
    )  # fmt: skip


def kill(command: Command, by: signal.Signals = signal.SIGKILL) -> None:
    """A signal to the server itself, found by its port."""
    port = command.arguments[2]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if len(words) > 2 and words[1].endswith(b"fake_process.py") and words[2] == port.encode():
                os.kill(int(entry.name), by)
                return
    raise AssertionError(f"no process serves port {port}")


async def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - looks at a fake, which has no event for it
            await asyncio.sleep(0.01)


def running(*fakes: FakeSGLang) -> int:
    return sum(len(fake.scheduler.runs) for fake in fakes)


def asked(fake: FakeSGLang, path: str = "/generate") -> list[str]:
    return [str(body["rid"]) for where, body in fake.requests if where == path]


async def all_of(fleet: SGLangFleet, requests: Sequence[GenerateRequest], meanwhile: Callable[[], object]) -> list[Generation]:
    """Their replies; `meanwhile` is called when they are on their way."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fleet.generate(one)) for one in requests]
        outcome = meanwhile()
        if asyncio.iscoroutine(outcome):
            await outcome
    return [task.result() for task in tasks]


async def test_a_fleet_of_two_holds_the_contract_of_an_engine(tmp_path: Path) -> None:
    @asynccontextmanager
    async def fleet() -> AsyncGenerator[SGLangFleet, None]:
        async with two(tmp_path) as (engine, _, _):
            yield engine

    assert len(await check_engine(fleet, weights=random_weights)) == 39


async def test_the_requests_of_a_session_go_to_one_server_and_sessions_are_spread(tmp_path: Path) -> None:
    async with two(tmp_path, token_s=SLOW_S) as (fleet, a, b):
        for turn in range(3):
            turns = [request(f"{episode}/{turn}", tokens=20, session=f"s0000.{episode}/0") for episode in range(6)]
            await all_of(fleet, turns, lambda: None)
        sessions = [sorted(rid.rpartition("_t")[0] for rid in asked(fake)) for fake in (a, b)]
    assert [len(names) for names in sessions] == [9, 9]
    assert not set(sessions[0]) & set(sessions[1])


async def test_the_ids_that_the_server_saw_come_back_through_the_router(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        await fleet.generate(request("one"))
    (body,) = [body for fake in (a, b) for path, body in fake.requests if path == "/generate"]
    assert body["return_prompt_token_ids"] is True
    assert body["sampling_params"]["sampling_seed"] == 0


async def test_requests_of_a_server_that_dies_are_sent_again_to_the_other(tmp_path: Path) -> None:
    async with two(tmp_path, token_s=SLOW_S) as (fleet, a, b):

        async def killed() -> None:
            await until(lambda: running(a) > 0 and running(b) > 0)
            await b.kill()

        replies = await all_of(fleet, [request(f"r{n}", tokens=40, session=f"e{n}") for n in range(6)], killed)
        assert fleet.live == (a.url,)
    assert [(len(reply.ids), reply.finish) for reply in replies] == [(40, "length")] * 6


async def test_a_launched_server_that_is_killed_comes_back_with_the_current_weights(tmp_path: Path) -> None:
    commands = [process(0, SLOW_S), process(1, SLOW_S)]
    async with fleet_of(commands, tmp_path) as fleet:
        await fleet.publish("policy", random_weights(1), version(1))

        async def killed() -> None:
            await asyncio.sleep(0.2)
            kill(commands[1])
            await until(lambda: len(fleet.live) == 1)

        replies = await all_of(fleet, [request(f"r{n}", tokens=40, session=f"e{n}") for n in range(4)], killed)
        await until(lambda: len(fleet.live) == 2)
        async with asyncio.timeout(30):
            after = await all_of(fleet, [request(f"s{n}", session=f"f{n}") for n in range(4)], lambda: None)
    assert [len(reply.ids) for reply in replies] == [40] * 4
    assert {span.version for reply in (*replies, *after) for span in reply.spans} == {version(1)}
    assert "is back" not in (tmp_path / "fake-1.log").read_text()


async def test_a_launched_server_that_hangs_is_ended_and_its_requests_are_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.engines.fleet.transport.PROBE_S", 0.3)
    commands = [process(0, SLOW_S), process(1, SLOW_S)]
    async with fleet_of(commands, tmp_path) as fleet:

        async def hung() -> None:
            await asyncio.sleep(0.2)
            kill(commands[1], signal.SIGSTOP)

        replies = await all_of(fleet, [request(f"r{n}", tokens=60, session=f"e{n}") for n in range(4)], hung)
        await until(lambda: len(fleet.live) == 2)
    assert [(len(reply.ids), reply.finish) for reply in replies] == [(60, "length")] * 4


async def test_the_requests_of_the_only_server_wait_until_it_is_back(tmp_path: Path) -> None:
    command = process(token_s=SLOW_S)
    async with fleet_of([command], tmp_path) as fleet:
        await fleet.publish("policy", random_weights(1), version(1))

        async def killed() -> None:
            await asyncio.sleep(0.2)
            kill(command)

        (reply,) = await all_of(fleet, [request("one", tokens=60)], killed)
        assert fleet.live == (command.url,)
    assert len(reply.ids) == 60
    assert [span.version for span in reply.spans] == [version(1)]


async def test_a_request_that_no_server_comes_back_for_ends_with_its_deadline(tmp_path: Path) -> None:
    async with FakeSGLang() as fake, fleet_of([fake.url], tmp_path, seconds=Seconds(request=1, control=5, publish=1)) as fleet:
        await fake.kill()
        with pytest.raises(EngineError, match="no reply within 1 s") as caught:
            await fleet.generate(request("one"))
        assert caught.value.retryable
        with pytest.raises(EngineError, match="no server came back within 1 s"):
            await fleet.publish("policy", random_weights(1), version(1))


async def test_a_request_that_waits_for_a_server_can_be_aborted(tmp_path: Path) -> None:
    async with FakeSGLang() as fake, fleet_of([fake.url], tmp_path) as fleet:
        await fake.kill()

        async def aborted() -> None:
            await until(lambda: not fleet.live)
            await fleet.abort("one")

        (reply,) = await all_of(fleet, [request("one")], aborted)
    assert reply.finish == "abort"
    assert not len(reply.ids)


async def test_an_update_that_fails_on_one_drops_it_and_it_comes_back_with_the_new_weights(tmp_path: Path) -> None:
    async with two(tmp_path, token_s=SLOW_S) as (fleet, a, b):
        b.fail("/update_weights_from_tensor", "500")

        async def publish() -> None:
            await until(lambda: running(a) > 0 and running(b) > 0)
            await fleet.publish("policy", random_weights(1), version(1))

        replies = await all_of(fleet, [request(f"r{n}", tokens=60, session=f"e{n}") for n in range(4)], publish)
        await until(lambda: len(fleet.live) == 2)
        assert (a.scheduler.version, b.scheduler.version) == (str(version(1)),) * 2
        assert not a.scheduler.paused
        assert not b.scheduler.paused
    assert [(len(reply.ids), reply.finish) for reply in replies] == [(60, "length")] * 4


async def test_an_update_that_fails_on_all_raises_every_cause_and_drops_none_that_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        with pytest.raises(EngineError) as caught:
            await fleet.publish("policy", {"path": "/no/such/folder"}, version(1))
        assert a.url in str(caught.value)
        assert b.url in str(caught.value)
        assert len(fleet.live) == 2
        assert (await fleet.generate(request("one"))).spans[0].version == fleet.version("policy")
        await fleet.publish("policy", random_weights(1), version(2))


async def test_an_update_that_no_server_survives_raises_every_cause(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        for fake in (a, b):
            fake.fail("/update_weights_from_tensor", "drop")
        with pytest.raises(EngineError, match="failed everywhere") as caught:
            await fleet.publish("policy", random_weights(1), version(1))
        assert a.url in str(caught.value)
        assert b.url in str(caught.value)
        await until(lambda: len(fleet.live) == 2)
        await fleet.publish("policy", random_weights(1), version(2))
        assert (await fleet.generate(request("one"))).spans[0].version == version(2)


async def test_a_reply_of_a_server_that_was_restarted_unseen_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path, probe_s=30) as (fleet, _, b):
        await fleet.publish("policy", random_weights(1), version(1))
        await b.scheduler.write(random_weights(0), "v0")  # as a restart would
        replies = [await fleet.generate(request(f"r{n}", session=f"e{n}")) for n in range(4)]
    assert f"{b.url} is dropped" in caplog.text
    assert {span.version for reply in replies for span in reply.spans} == {version(1)}


async def test_an_idle_server_that_was_restarted_unseen_is_found_and_given_the_current_weights(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, _, b):
        await fleet.publish("policy", random_weights(1), version(1))
        await b.scheduler.write(random_weights(0), "v0")
        await until(lambda: b.scheduler.version == str(version(1)))
        await until(lambda: len(fleet.live) == 2)


async def test_weights_kept_for_servers_that_come_back_are_a_copy(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        weights = random_weights(1)
        await fleet.publish("policy", weights, version(1))
        for value in weights.values():
            value *= 0  # the learner's next step
        await b.scheduler.write(random_weights(0), "v0")
        await until(lambda: b.scheduler.version == str(version(1)))
        served = [fake.scheduler.served.model.tensors for fake in (a, b)]
    assert all(np.array_equal(served[0][name], served[1][name]) for name in weights)


async def test_a_server_is_not_taken_back_while_the_fleet_is_paused(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        await fleet.pause()
        b.fail("/update_weights_from_tensor", "500")
        await fleet.publish("policy", random_weights(1), version(1))
        await until(lambda: asked(b, "/abort_request") != [])
        assert fleet.live == (a.url,)
        assert a.scheduler.paused
        await fleet.resume()
        await until(lambda: len(fleet.live) == 2)


async def test_a_router_that_ends_is_started_again_and_its_requests_are_sent_again(tmp_path: Path) -> None:
    async with two(tmp_path, token_s=SLOW_S) as (fleet, a, b):

        async def ended() -> None:
            await until(lambda: running(a, b) == 4)
            assert fleet._router is not None
            await fleet._router.server.stop()

        replies = await all_of(fleet, [request(f"r{n}", tokens=40, session=f"e{n}") for n in range(4)], ended)
        assert len(fleet.live) == 2
    assert [(len(reply.ids), reply.finish) for reply in replies] == [(40, "length")] * 4


async def test_the_engines_own_failure_is_told_and_drops_nobody(tmp_path: Path) -> None:
    async with two(tmp_path) as (fleet, a, b):
        for fake in (a, b):
            fake.fail("/generate", "500")
        with pytest.raises(EngineError, match="500: Internal server error") as caught:
            await fleet.generate(request("one"))
        assert caught.value.retryable
        assert len(fleet.live) == 2


async def test_servers_that_are_not_alike_are_refused(tmp_path: Path) -> None:
    async with FakeSGLang() as a, FakeSGLang(weight_version="v7") as b:
        with pytest.raises(UserError, match="must be alike: http"):
            async with fleet_of([a.url, b.url], tmp_path):
                raise AssertionError("not reached")


async def test_a_fleet_needs_each_server_once_and_its_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at least one server"):
        fleet_of([], tmp_path)
    with pytest.raises(UserError, match="each server of a fleet once"):
        fleet_of(["http://a", "http://a/"], tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"agentrl-runtime\[router\]"):
        fleet_of(["http://a", "http://b"], tmp_path)


async def test_a_weights_folder_is_kept_as_a_folder() -> None:
    from agentrl.engines.fleet.engine import copied

    weights: Weights = {"path": "/models/one"}
    assert copied(weights) == weights


MODELS = {"searcher": Path("models/none")}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SGLang(launch=2, urls=("http://a",)), r"launch=2 with urls=\('http://a',\)"),
        (SGLang(launch=-1), "launch=-1"),
        (SGLang(launch=1, weights="group"), 'weights="group" reaches one server'),
        (SGLang(urls=("http://a",), key_env="PATH"), "without a key"),
        (SGLang(launch=1, adapters=True), "serve no adapters"),
        (SGLang(launch=1, python="/no/such/python"), "'/no/such/python' is no Python"),
        (SGLang(launch=2, tp=2, gpus="0-2"), "gpus='0-2' are too few"),
        (SGLang(urls=("a:1",)), "the URL must begin with http"),
    ],
)
def test_settings_of_servers_that_do_not_go_together_are_refused(spec: SGLang, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec.open(MODELS, {}, "run")


def test_settings_name_servers_to_launch_and_where_their_logs_go(tmp_path: Path) -> None:
    spec = put_settings(SGLang(), ["launch=1", f"logs={tmp_path}", "args=--context-length,512"])
    fleet = spec.open(MODELS, {}, "run")
    assert isinstance(fleet, SGLangFleet)
    (server,) = fleet._launched.servers
    assert server.log == tmp_path / "sglang-0.log"
    assert server.command.arguments[-2:] == ("--context-length", "512")
