"""Probes on the real engine: what they measure, what is stored of them, and what a run without them is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import UserError, train
from agentrl.config import apply_settings
from agentrl.credit import assign
from agentrl.credit.compare import read_steps
from agentrl.engines.contract import ScoreRequest
from agentrl.engines.scripted import Scripted
from agentrl.episode import Column, Ledger
from agentrl.evaluate import fork, replay
from agentrl.probes import AnswerProbe, EntropyRise
from agentrl.run import Run
from agentrl.runtime.policies import open_renderer
from agentrl.runtime.runtime import Runtime
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from tests.credit.conftest import make_chain
from tests.train.small import small


def answer_of(task: Any) -> str:
    return task.answer


def probed(warm: Path, **changes: Any) -> Any:
    plain = small(warm, steps=3, eval_every=0, held_out=(), **changes)
    return apply_settings(replace(plain, probes=(AnswerProbe(answer_of, lead=""),)), ["credit=igpo"])


@pytest.fixture(scope="module")
def trained(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    experiment = probed(warm)
    out = tmp_path_factory.mktemp("probes") / "run"
    asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out


def test_every_trained_turn_has_a_stored_probe_and_the_credit_is_the_estimators(trained: Any) -> None:
    experiment, out = trained
    with Run.find(out).store(read_only=True) as store:
        steps = read_steps(store, EpisodeFilter(split="train"))
        stored = list(store.steps("searcher"))
    moved = 0
    for step, groups in zip(stored, steps, strict=True):
        for episode in (episode for group in groups for episode in group.finished):
            probes = [probe for turn in episode.turns for probe in turn.probes]
            assert len(probes) == len(episode.turns) and all(0 < probe.value <= 1 for probe in probes)
            assert episode.ledger.probe_tokens == sum(len(probe.ids) for probe in probes) > 0
            assert {str(probe.version) for probe in probes} == {str(step.before)}
        batch, credit = assign(groups, experiment.credit)
        wanted = {
            (batch.episodes[e].id, turn.id): np.float32(a)
            for e, turn, a in zip(batch.turns.episode.tolist(), batch.turns.turn, credit.advantage, strict=True)
        }
        got = {
            (row.episode, turn): np.frombuffer(packed, "<f4")
            for row in step.rows
            for turn, packed in zip(row.turns, row.advantages, strict=True)
        }
        assert got.keys() == wanted.keys() and all((values == wanted[key]).all() for key, values in got.items())
        moved += sum(bool(values.any()) for values in got.values())
    assert moved > 0


def test_a_probe_is_the_likelihood_of_the_answer_before_the_turn(warm: Path) -> None:
    experiment = probed(warm)

    async def measure() -> None:
        async with Runtime(experiment) as runtime:
            episode = await runtime.run(experiment.tasks[0], group="g")
            renderer = runtime.renderers["searcher"]
            answer = renderer.encode(experiment.tasks[0].answer)
            for turn in episode.turns:
                before = episode.path(turn)[: -len(turn.sampled_ids)]
                ids = np.concatenate((before, answer))
                scores = await runtime.engine.score(ScoreRequest("again", "searcher", ids, len(before)))
                (probe,) = turn.probes
                assert probe.position == len(before) and probe.ids.tolist() == answer.tolist()
                assert probe.logprobs.tobytes() == scores.logprobs.tobytes()
                assert probe.value == pytest.approx(np.exp(scores.logprobs.mean()))

    asyncio.run(measure())


def test_a_probed_episode_replays_and_forks_and_goes_on_as_any_other(trained: Any, tmp_path: Path) -> None:
    experiment, out = trained
    replayed = asyncio.run(replay(experiment, out, "s000000.000.0"))
    assert replayed.differences == () and replayed.again.ledger == replayed.stored.ledger
    forked = asyncio.run(fork(experiment, out, "s000000.000.0", 0))
    assert forked.status == "done" and all(len(turn.probes) == 1 for turn in forked.turns)


def test_an_episode_cut_off_before_its_end_was_stored_is_probed_once(warm: Path, tmp_path: Path) -> None:
    experiment = probed(warm)
    task = experiment.tasks[0]

    class Lossy(SQLiteStore):
        def finish(self, episode: str, tail: Any) -> None:
            """The process dies with the probes stored and the tail not."""

    async def sample(kind: Any) -> Any:
        with kind(tmp_path / "s.db") as store:
            async with Runtime(experiment, store=store) as runtime:
                episode = await runtime.run(task, group="g")
            await store.flush()
            return episode, store.episode("g.0")

    first, cut = asyncio.run(sample(Lossy))
    assert cut.status == "running" and all(len(turn.probes) == 1 for turn in cut.turns)
    again, stored = asyncio.run(sample(SQLiteStore))
    assert [turn.digest for turn in again.turns] == [turn.digest for turn in first.turns]
    assert all(len(turn.probes) == 1 for turn in stored.turns) and stored.ledger == first.ledger != Ledger()


def test_what_a_run_lacks_is_refused_before_the_first_token(warm: Path, tmp_path: Path) -> None:
    experiment = probed(warm)
    with pytest.raises(UserError, match=r"IGPO needs the probe 'answer', which nothing asks; Experiment\(..., probes=\(Answer"):
        asyncio.run(train(replace(experiment, probes=()), out=tmp_path / "a", sinks=[]))
    blind = Scripted(lambda prompt, rng: "", renderer=open_renderer(experiment.by_name["searcher"], warm), policy="searcher")

    async def enter() -> None:
        async with Runtime(experiment, engine=blind):
            raise AssertionError("it was not refused")

    with pytest.raises(UserError, match=r"probes=.*AnswerProbe.* need log-probs of given ids, and this engine scores none"):
        asyncio.run(enter())
    with pytest.raises(UserError, match=r"AnswerProbe needs the right answer of task .*, got ''; mend `answer`"):
        list(AnswerProbe(lambda task: "")("a task", None, {}))


def test_the_rise_of_entropy_behind_a_tool_is_recorded_whatever_the_plan(warm: Path, tmp_path: Path) -> None:
    experiment = apply_settings(small(warm, eval_every=0, held_out=()), ["probes=entropy_rise", "probes.0.tokens=3"])
    assert experiment.probes == (EntropyRise(tokens=3),)

    async def sample() -> Any:
        with SQLiteStore(tmp_path / "s.db") as store:
            async with Runtime(experiment, store=store) as runtime:
                episodes = [await runtime.run(task, group=f"g{n}") for n, task in enumerate(experiment.tasks[:4])]
            await store.flush()
            return episodes, [store.episode(episode.id) for episode in episodes]

    sampled, stored = asyncio.run(sample())
    risen = 0
    for live, episode in zip(sampled, stored, strict=True):
        first, *others = live.turns
        assert not first.probes and "entropy" in first.columns
        for turn in others:
            (probe,) = turn.probes
            wanted, before = (float(np.mean(each.columns["entropy"].values[:3], dtype=np.float64)) for each in (turn, first))
            assert probe.name == "entropy_rise" and probe.value == wanted - before and not len(probe.ids)
            risen += 1
        assert [[p.value for p in turn.probes] for turn in episode.turns] == [[p.value for p in t.probes] for t in live.turns]
        assert live.ledger.probe_tokens == 0
    assert risen > 0


def test_a_turn_without_entropy_or_without_a_tool_before_it_has_no_rise() -> None:
    plain = make_chain("e", "g", [0.0, 0.0, 0.0])
    read = {"entropy": Column("entropy", np.array([1.0, 3.0], np.float32))}
    with_columns = replace(plain, turns=tuple(replace(turn, columns=read) for turn in plain.turns))
    assert not list(EntropyRise().measure(plain)) and not list(EntropyRise().measure(with_columns))


def test_entropy_that_the_engine_does_not_give_and_no_tokens_are_refused(warm: Path) -> None:
    experiment = replace(small(warm, eval_every=0, held_out=()), probes=(EntropyRise(),))
    blind = Scripted(lambda prompt, rng: "", renderer=open_renderer(experiment.by_name["searcher"], warm), policy="searcher")

    async def enter() -> None:
        async with Runtime(experiment, engine=blind):
            raise AssertionError("it was not refused")

    with pytest.raises(UserError, match="EntropyRise needs entropy of every token, which this engine does not give"):
        asyncio.run(enter())
    with pytest.raises(UserError, match="EntropyRise needs tokens >= 1, got 0"):
        EntropyRise(tokens=0)
