"""Several engines as one, and a workflow of a role that learns and a role behind an endpoint."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Agent, Experiment, Policy, UserError, tool, train, workflow
from agentrl.config import apply_settings, experiment_json
from agentrl.engines.contract import GenerateRequest, ScoreRequest
from agentrl.engines.local import LocalEngine
from agentrl.engines.mock import Mock
from agentrl.engines.several import SeveralEngines
from agentrl.engines.specs import VLLM, Local, OpenAI, Several, own_renderer
from agentrl.episode import Sampling, Version, token_ids
from agentrl.evaluate import replay
from agentrl.rendering.chat import ChatRenderer
from agentrl.rollout import Independent
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter
from agentrl.transformer.tiny import make_tiny_model
from tests.engines.chat_server import ChatServer, called, said

KEY_ENV, KEY = "TEST_CHAT_KEY", "sk-of-the-test"


@tool()
def length(text: str) -> int:
    """How long a text is."""
    return len(text)


@workflow(Agent("writer", max_tokens=6, max_turns=1), Agent("judge", "Grade it.", tools=[length], max_tokens=20))
async def judged(task: str, team: Any) -> float:
    written = await team["writer"].run(task)
    grade = await team["judge"].run(f"{task}: {written.text}")
    return float(grade.text)


def judge(body: dict[str, Any]) -> dict[str, Any]:
    """Asks for the length first, then grades by it."""
    last = body["messages"][-1]
    if last["role"] == "user":
        return said(None, calls=[called("length", json.dumps({"text": last["content"]}))])
    return said(str(int(last["content"]) % 5 / 5))


def of_output(task: Any, output: float, episode: Any) -> float:
    return output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), ["alpha", "beta"], [], hidden=32, layers=1, heads=1, ff=32)


def experiment(model: Path, url: str, **changes: Any) -> Experiment[Any, Any]:
    policies = {"writer": Policy("writer", model=model), "judge": Policy("judge", frozen=True)}
    engine = Several({"judge": OpenAI("gpt-test", url, key_env=KEY_ENV)})
    settings: dict[str, Any] = {
        "policies": policies, "engine": engine, "reward": of_output, "tasks": ["alpha", "beta"], "steps": 2,
        "tasks_per_step": 2, "rollout": Independent(4), "eval_every": 0,
    }  # fmt: skip
    return Experiment(judged, **(settings | changes))


@pytest.mark.timeout(120)
def test_a_local_role_learns_beside_a_judge_behind_an_endpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)

    async def run() -> tuple[Experiment[Any, Any], ChatServer]:
        async with ChatServer(judge) as server:
            made = experiment(model, server.url)
            result = await train(made, out=tmp_path / "run", sinks=[])
            assert result.batches == 2 and set(result.policies) == {"writer"}
            return made, server

    made, server = asyncio.run(run())
    assert set(server.keys) == {f"Bearer {KEY}"} and len(server.bodies) == 2 * 2 * 2 * 4
    folder = Run.find(tmp_path / "run")
    with folder.store(read_only=True) as store:
        episodes = [store.episode(head.id) for head in store.heads(EpisodeFilter())]
    for episode in episodes:
        assert episode.status == "done", episode.failure
        writer, asked, graded = episode.turns
        assert writer.trainable and not asked.trainable and asked.untrained == "its engine gives no token ids"
        assert graded.text == str(episode.output) and asked.tool_calls[0].output
        assert graded.parent is not None and graded.parent.turn == asked.id
        assert episode.ledger.costs == {"judge/prompt_tokens": 22, "judge/completion_tokens": 6}
    assert len({episode.output for episode in episodes}) > 1
    written = b"".join(file.read_bytes() for file in folder.folder.rglob("*") if file.is_file())
    assert KEY.encode() not in written and KEY_ENV.encode() in written

    again = asyncio.run(replay(made, tmp_path / "run", episodes[0].id))
    assert again.differences == (), "a replay needs neither endpoint nor key"


def test_training_a_policy_of_an_endpoint_is_refused(model: Path, tmp_path: Path) -> None:
    policies = {"writer": Policy("writer", model=model), "judge": Policy("judge", model=model)}
    with pytest.raises(UserError, match="'judge' is to be trained, but its engine gives no token ids; freeze it"):
        asyncio.run(train(experiment(model, "http://127.0.0.1:9/v1", policies=policies), out=tmp_path / "run"))


def test_a_key_that_is_not_set_and_a_policy_that_is_not_there_are_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_ENV, raising=False)
    with pytest.raises(UserError, match=f"environment variable {KEY_ENV}, which is not set"):
        OpenAI("m", key_env=KEY_ENV).open({"judge": Path()}, {}, "run")
    with pytest.raises(UserError, match="Several names critic; the experiment's policies are judge"):
        Several({"critic": Local()}).open({"judge": Path()}, {}, "run")
    with pytest.raises(UserError, match="serves one policy, got a, b"):
        VLLM().open({"a": Path(), "b": Path()}, {}, "run")


def test_specs_go_by_short_names_and_are_told_without_the_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    made = experiment(model, "http://x/v1")
    assert KEY not in json.dumps(experiment_json(made)) and KEY_ENV in json.dumps(experiment_json(made))
    changed = apply_settings(made, ["engine=openai", "engine.model=gpt-test", "engine.key_env="])
    assert changed.engine == OpenAI("gpt-test", key_env="")
    assert apply_settings(made, ["engine=vllm", "engine.url=http://v"]).engine == VLLM("http://v")


def test_the_renderer_is_that_of_each_policys_engine() -> None:
    mixed = Several({"judge": OpenAI("m")})
    assert isinstance(own_renderer(mixed, "judge"), ChatRenderer) and own_renderer(mixed, "writer") is None
    assert own_renderer(replace(mixed, rest=OpenAI("n")), "writer") is not None


def at_once(rng: random.Random) -> float:
    return 0.0


@asynccontextmanager
async def two(folder: Path) -> AsyncGenerator[SeveralEngines, None]:
    async with SeveralEngines({"a": LocalEngine({"a": folder}), "b": Mock(at_once, policy="b")}) as engine:
        yield engine


async def test_each_policy_is_served_by_its_own_engine(model: Path) -> None:
    async with two(model) as engine:
        assert engine.info.vocab_size == min(engine.of("a").info.vocab_size, engine.of("b").info.vocab_size)
        assert engine.info.max_context == min(engine.of("a").info.max_context, engine.of("b").info.max_context)
        prompt = token_ids([1, 2, 3])
        for policy in ("a", "b"):
            request = GenerateRequest(policy, policy, (prompt,), Sampling(max_tokens=4), 0)
            mine, alone = await engine.generate(request), await engine.of(policy).generate(request)
            assert np.array_equal(mine.ids, alone.ids) and mine.spans[0].version == engine.version(policy)
        scores = await engine.score(ScoreRequest("s", "a", prompt))
        assert scores.logprobs.shape == (2,)
        with pytest.raises(UserError, match="no engine serves policy 'c'; there are engines for a, b"):
            await engine.generate(GenerateRequest("c", "c", (prompt,), Sampling(), 0))


async def test_pause_reaches_all_and_publish_one(model: Path) -> None:
    async with two(model) as engine:
        await engine.pause()
        requests = [GenerateRequest(name, name, (token_ids([1]),), Sampling(max_tokens=2), 0) for name in ("a", "b")]
        tasks = [asyncio.ensure_future(engine.generate(request)) for request in requests]
        done, _ = await asyncio.wait(tasks, timeout=0.05)
        assert not done
        await engine.abort("b")
        assert (await tasks[1]).finish == "abort"
        before, version = engine.version("a"), Version("l", "b", 7)
        await engine.publish("b", {}, version)
        assert engine.version("b") == version and engine.version("a") == before
        await engine.resume()
        assert (await tasks[0]).finish == "length"


async def test_an_engine_that_cannot_be_entered_leaves_none_entered(model: Path) -> None:
    class Refusing(Mock):
        async def __aenter__(self) -> Mock:
            raise UserError("not today")

    left: list[str] = []

    class Noted(Mock):
        async def __aexit__(self, *exc: object) -> None:
            left.append("left")

    engines: Mapping[str, Any] = {"a": Noted(at_once, policy="a"), "b": Refusing(at_once, policy="b")}
    with pytest.raises(UserError, match="not today"):
        async with SeveralEngines(engines):
            pass
    assert left == ["left"]
