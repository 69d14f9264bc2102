"""Two real SGLang servers behind SGLang's router, started by us: they are killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agentrl import train
from agentrl.config import apply_settings
from agentrl.engines.contract import GenerateRequest, Generation
from agentrl.engines.fleet import SGLangFleet, open_fleet
from agentrl.engines.launch import sglang_command
from agentrl.episode import Sampling, Version, token_ids
from agentrl.errors import EngineError
from agentrl.run import Run
from agentrl.train import TrainResult
from tests.engines_real.environment import perturbed, python_of
from tests.train.small import small, tiny_model

pytestmark = [pytest.mark.engines, pytest.mark.timeout(500)]

TOKENS = 400


def version(step: int) -> Version:
    return Version("run", "policy", step, f"{step:08x}")


def request(name: str, tokens: int = TOKENS) -> GenerateRequest:
    return GenerateRequest(name, "policy", (token_ids([5, 6, 7, 8]),), Sampling(max_tokens=tokens), 0, session=name)


def kill(fleet: SGLangFleet, number: int) -> None:
    """SIGKILL to the server's own process, the child of its guard."""
    process = fleet._launched.servers[number]._process
    assert process is not None
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)


async def until_live(fleet: SGLangFleet, count: int, seconds: float = 200) -> None:
    async with asyncio.timeout(seconds):
        while len(fleet.live) != count:  # noqa: ASYNC110 - as someone outside would look
            await asyncio.sleep(0.05)


async def all_of(fleet: SGLangFleet, count: int, killed: int) -> list[Generation]:
    """Replies to requests in whose midst a server is killed."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(fleet.generate(request(f"{killed}.{n}"))) for n in range(count)]
        await asyncio.sleep(0.4)
        assert not any(task.done() for task in tasks)
        kill(fleet, killed)
    return [task.result() for task in tasks]


async def test_a_fleet_of_two_loses_servers_and_no_request(model: Path, tmp_path: Path) -> None:
    """One test of four claims, for the servers take a minute to start."""
    weights = perturbed(model)
    commands = [sglang_command(model, number=number, python=python_of("sglang")) for number in range(2)]
    async with SGLangFleet(commands, logs=tmp_path, model=model, probe_s=0.5) as fleet:
        await fleet.publish("policy", weights(1), version(1))

        # killed in mid-generation: all requests come to their end on the other
        replies = await all_of(fleet, 4, killed=0)
        assert [(len(reply.ids), reply.finish) for reply in replies] == [(TOKENS, "length")] * 4
        assert fleet.live == (commands[1].url,)

        # published to while it is away, it comes back with the current weights
        await fleet.publish("policy", weights(2), version(2))
        await until_live(fleet, 2)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fleet.generate(request(f"back.{n}", 8))) for n in range(8)]
        assert {span.version for task in tasks for span in task.result().spans} == {version(2)}

        # killed just before an update, which so fails on one of two: that one is dropped
        kill(fleet, 1)
        await fleet.publish("policy", weights(3), version(3))
        assert fleet.version("policy") == version(3)
        assert fleet.live == (commands[0].url,)
        await until_live(fleet, 2)

        # a folder that neither can read is refused by both, and both go on
        with pytest.raises(EngineError) as caught:
            await fleet.publish("policy", {"path": str(tmp_path / "none")}, version(4))
        assert all(command.url in str(caught.value) for command in commands)
        assert len(fleet.live) == 2
        assert (await fleet.generate(request("last", 4))).spans[0].version == version(3)


def test_a_run_trains_with_servers_that_it_launches_and_loses_one_of_but_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[SGLangFleet] = []

    def remembering(*args: Any) -> SGLangFleet:
        opened.append(open_fleet(*args))
        return opened[-1]

    monkeypatch.setattr("agentrl.engines.fleet.open_fleet", remembering)
    logs = tmp_path / "logs"
    settings = ["engine=sglang", "engine.launch=2", f"engine.python={python_of('sglang')}", f"engine.logs={logs}"]
    experiment = apply_settings(small(tiny_model(tmp_path / "model"), steps=3, eval_every=0), settings)

    async def training() -> TrainResult:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(train(experiment, out=tmp_path / "run", sinks=[]))
            async with asyncio.timeout(200):
                while "POST /generate" not in _text(logs / "sglang-1.log"):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            kill(opened[0], 1)
        return task.result()

    result = asyncio.run(training())
    with Run.find(result.run).store(read_only=True) as store:
        statuses = [episode.status for episode in store.episodes()]
    assert result.batches == 3
    assert len(statuses) == 3 * 2 * 4
    assert set(statuses) <= {"done", "overlong"}
    assert "/update_weights_from_disk" in _text(logs / "sglang-0.log")


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""
