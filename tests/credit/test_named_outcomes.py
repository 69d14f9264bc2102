"""Where a method has nothing to go on, something says so by name: a metric, a loss, an error. The table of docs/credit.md."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Agent, Experiment, Policy, Team, UserError, tool, workflow
from agentrl.credit import ATGRPO, ESTIMATORS, GRPO, IGPO, PVPO, RLOO, SALT, GiGPO, TreeGRPO, assign, to_batch
from agentrl.engines.contract import ScoreRequest
from agentrl.engines.scripted import Scripted
from agentrl.episode import Episode, Failure, Group, Probe, token_ids
from agentrl.errors import EngineError
from agentrl.meter import episode_metrics, losses
from agentrl.probes import AnswerProbe
from agentrl.rollout import RandomTree
from agentrl.runtime.policies import open_renderer
from agentrl.runtime.probing import probe
from agentrl.runtime.runtime import Runtime
from agentrl.store.sqlite import SQLiteStore
from tests.credit.conftest import make_chain, make_groups
from tests.credit.trees import make_leaf
from tests.train.small import tiny_model

LOST = Failure("engine", "the server is gone")
METHODS = [name for name, method in sorted(ESTIMATORS.items()) if method.needs.group > 1]
"""Those that compare the members of a group."""


def lone_leaf() -> list[Group]:
    """Two trees of two leaves; of the first one leaf is left."""
    leaves = [
        make_leaf("a", ("q", "a"), 1.0),
        replace(make_leaf("b", ("q", "b"), 1.0, of="a"), status="failed", failure=LOST),
        make_leaf("c", ("r", "c"), 0.0),
        make_leaf("d", ("r", "d"), 1.0, of="c"),
    ]
    return [Group("g", None, tuple(leaves), 4)]


def lone_member() -> list[Group]:
    """Of five episodes one is left."""
    lost = [make_chain(f"g.{n}", "g", [0.0], status="failed", failure=LOST) for n in (1, 2, 3, 4)]
    return make_groups([make_chain("g.0", "g", [0.0, 0.0], outcome=1.0, states=("s", "t")), *lost])


def failing() -> list[Group]:
    """Nobody succeeds; the reference did, half of the time."""
    episodes = [make_chain(f"g.{n}", "g", [0.0, 0.0], states=("s", "t")) for n in range(3)]
    return [Group("g", {"reference_rewards": [1.0, 0.0]}, tuple(episodes), 3)]


def strangers() -> list[Group]:
    """No two turns begin in one state."""
    return make_groups([make_chain(f"g.{n}", "g", [0.0], outcome=float(n), states=(f"s{n}",)) for n in range(3)])


def half_probed() -> list[Group]:
    """Of the first episode one turn has its probe, of the second both."""

    def probed(episode: Episode, turns: int) -> Episode:
        found = Probe("answer", 0, token_ids([1]), np.zeros(1, np.float32), value=0.5)
        made = [replace(turn, probes=(found,)) if at < turns else turn for at, turn in enumerate(episode.turns)]
        return replace(episode, turns=tuple(made))

    ends = (make_chain(f"g.{n}", "g", [0.0, 0.0], outcome=float(n)) for n in range(2))
    return make_groups([probed(episode, turns) for episode, turns in zip(ends, (1, 2), strict=True)])


@dataclass(frozen=True)
class Case:
    """What `method` makes of these groups: an advantage for each turn, and what the step's metrics say."""

    what: str
    groups: Callable[[], list[Group]]
    method: Any
    advantage: Sequence[float]
    metrics: Mapping[str, float]


CASES = (
    Case("lone leaf", lone_leaf, TreeGRPO(form="intra", std=None), [0, 0, -0.5, -0.5, 0.5, 0.5], {"credit/zero": 1 / 3}),
    Case("group of one", lone_member, GRPO(), [0, 0], {"credit/zero": 1.0}),
    Case("group of one, its reward by choice", lone_member, GRPO(singleton="raw"), [1, 1], {"credit/zero": 0.0}),
    Case("no success", failing, GRPO(), [0] * 6, {"credit/zero": 1.0}),
    Case("no success, and a reference that had some", failing, PVPO(), [-0.5] * 6, {}),
    Case("state never met again", strangers, GiGPO(), [-1, 0, 1], {"credit/anchored": 0.0}),
    Case("step never taken again", strangers, SALT(base=RLOO()), [-1.5, 0, 1.5], {"credit/merged": 0.0}),
    Case("place never seen again", strangers, ATGRPO(), [0, 0, 0], {"credit/compared": 0.0}),
    Case("probe that failed", half_probed, IGPO(std=None), [-0.5, -0.25, 0.5, 0.75], {"credit/probed": 0.5}),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_the_outcome_is_this_credit_and_these_metrics(case: Case) -> None:
    _, credit = assign(case.groups(), case.method)
    assert np.asarray(credit.advantage) == pytest.approx(case.advantage, abs=1e-6)
    assert {name: credit.metrics[name] for name in case.metrics} == pytest.approx(case.metrics)


@pytest.mark.parametrize("name", METHODS)
def test_whoever_compares_gives_a_lone_survivor_exactly_nothing(name: str) -> None:
    (group,) = lone_member()
    method: Any = ESTIMATORS[name]()
    credit = method(to_batch([group]))
    assert all((np.asarray(each) == 0).all() for each in credit.advantage)


def test_a_group_with_one_survivor_leaves_the_batch_and_the_metrics_say_why() -> None:
    groups = lone_member()
    batch, credit = assign(groups, GRPO(), min_group=2)
    assert len(batch.turns) == len(np.asarray(credit.advantage)) == 0
    told = episode_metrics(groups)
    assert {name: told[name] for name in ("groups/short", "episodes/done", "episodes/lost", "lost/engine")} == {
        "groups/short": 1.0, "episodes/done": 1.0, "episodes/lost": 4.0, "lost/engine": 4.0,
    }  # fmt: skip
    assert losses(groups) == ["4 of 5 episodes lost (engine): g.1: the server is gone"]
    assert to_batch(lone_leaf()).lost == 1


def test_a_group_without_a_reference_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match="PVPO: group g has no finished episode of source 'reference', and its task's"):
        assign(make_groups([make_chain("g.0", "g", [0.0])]), PVPO())


async def test_a_probe_that_the_engine_cannot_score_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def score(self, request: ScoreRequest) -> Any:
            raise EngineError("too long")

    class Letters:
        def encode(self, text: str) -> Any:
            return token_ids([ord(letter) for letter in text])

    episode = make_chain("g.0", "g", [0.0, 0.0])
    broken: Any = Broken()
    letters: Any = {"p": Letters()}
    with caplog.at_level(logging.WARNING):
        found = await probe(episode, "task", [AnswerProbe(lambda task: "yes", lead="")], broken, letters, 0)
    assert found == []
    assert [record.message for record in caplog.records] == [f"turn {n} has no probe: too long" for n in (0, 1)]


MADE: list[str] = []
"""What the tool below has changed in the world."""


@tool(idempotent=False, outlives=True)
async def search(query: str) -> str:
    """Changes the world."""
    MADE.append(query)
    return f"order {len(MADE)}"


@workflow(Agent("buyer", tools=[search], max_turns=3, max_tokens=12))
async def buy(task: str, team: Team) -> str:
    return (await team["buyer"].run(task)).text


def respond(prompt: str, rng: random.Random) -> str:
    return f"<search>{rng.randrange(1000)}</search>"


def test_a_fork_takes_over_what_cannot_be_repeated_and_does_not_repeat_it(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    policy = Policy("buyer", model=model, parser="tags")
    experiment = Experiment(buy, policies=policy, reward=lambda *_: 0.0, tasks=("buy",), rollout=RandomTree(trees=1, expand=4))
    MADE.clear()

    async def sample() -> Group:
        engine = Scripted(respond, renderer=open_renderer(policy, model), policy="buyer")
        with SQLiteStore(tmp_path / "s.db") as store:
            async with Runtime(experiment, engine=engine, store=store) as runtime:
                return await runtime.group("buy", "g")

    group = asyncio.run(sample())
    told = sum(len(turn.tool_calls) for episode in group.finished for turn in episode.turns)
    assert len(group.finished) == 5 and len(MADE) == sum(episode.ledger.tool_calls for episode in group.finished) < told
