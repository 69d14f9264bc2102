"""Trees of rollouts on the real engine: what is shared, paid once, learned and replayed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import UserError, train
from agentrl.config import apply_settings
from agentrl.credit import Forest, assign, to_batch
from agentrl.credit.compare import read_steps
from agentrl.credit.tree import shared
from agentrl.engines.scripted import Scripted
from agentrl.episode import Group
from agentrl.evaluate import replay
from agentrl.exchange import entries_of, import_episodes
from agentrl.learning.packing import plan
from agentrl.learning.rows import to_rows, trace
from agentrl.run import Run
from agentrl.runtime.policies import open_renderer
from agentrl.runtime.runtime import Runtime
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from tests.train.small import small

TREE = ["credit=tree_grpo", "rollout=random_tree", "rollout.trees=2", "rollout.expand=2"]
NESTED = ["credit=treepo", "rollout=random_tree", "rollout.trees=1", "rollout.expand=1", "rollout.rounds=5"]
ENTROPY = ["credit=arpo_agentic", "credit.shared=hard", "rollout=entropy_tree", "rollout.size=6", "rollout.initial=3"]


@pytest.fixture(scope="module")
def monte_carlo(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    settings = ["credit=spo_chain", "rollout=monte_carlo", "rollout.cuts=2", "rollout.continuations=2"]
    experiment = tree_experiment(warm, settings)
    out = tmp_path_factory.mktemp("spo") / "run"
    asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out


def test_continuations_begin_with_the_chains_tokens_and_only_chains_are_trained(monte_carlo: Any) -> None:
    experiment, out = monte_carlo
    inside = trained = 0
    with Run.find(out).store(read_only=True) as store:
        for groups in read_steps(store, EpisodeFilter(split="train"), tokens=True):
            for group in groups:
                assert len(group.finished) == 10
                by_id = {episode.id: episode for episode in group.episodes}
                for fork in (episode for episode in group.episodes if episode.fork_of):
                    parent = by_id[fork.fork_of]
                    turn = fork.turns[shared(fork, parent)]
                    inside += turn.forced > 0
                    kept = parent.by_id[turn.id].sampled_ids[: turn.forced]
                    assert turn.sampled_ids[: turn.forced].tolist() == kept.tolist()
                    own = fork.turns[shared(fork, parent) :]
                    assert fork.ledger.sampled_tokens == sum(len(each.sampled_ids) - each.forced for each in own)
            batch, credit = assign(groups, experiment.credit)
            rows = to_rows(batch, credit, "searcher")
            assert rows and all(row.episode.fork_of is None for row in rows)
            trained += sum(bool(np.any(turn.advantage)) for row in rows for turn in row.trained)
        names = [head.id for head in store.heads(EpisodeFilter(step=0))]
    assert inside > 0 and trained > 0
    for name in names:
        assert asyncio.run(replay(experiment, out, name)).differences == ()


def tree_experiment(warm: Path, settings: list[str], **changes: Any) -> Any:
    return apply_settings(small(warm, steps=3, eval_every=0, held_out=(), **changes), settings)


@pytest.fixture(scope="module", params=[TREE, NESTED, ENTROPY], ids=["random", "nested", "entropy"])
def trained(request: Any, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Three batches of two tasks, six leaves each."""
    experiment = tree_experiment(warm, request.param)
    out = tmp_path_factory.mktemp("tree") / "run"
    asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out


@pytest.fixture
def steps(trained: Any) -> Iterator[Any]:
    with Run.find(trained[1]).store(read_only=True) as store:
        yield read_steps(store, EpisodeFilter(split="train"), tokens=True)


def test_a_group_has_all_its_leaves_and_forks_share_turns_to_the_bit(steps: Any) -> None:
    groups = [group for step in steps for group in step]
    assert [len(group.finished) for group in groups] == [6] * 6 and {group.wanted for group in groups} == {6}
    shared = 0
    for group in groups:
        by_id = {episode.id: episode for episode in group.episodes}
        for episode in group.episodes:
            if episode.fork_of is None:
                continue
            parent = by_id[episode.fork_of]
            for turn in episode.turns:
                other = parent.by_id.get(turn.id)
                if other is not None and other.seed == turn.seed:
                    shared += 1
                    assert other.sampled_ids.tolist() == turn.sampled_ids.tolist() and other.digest == turn.digest
                    assert other.logprobs.tobytes() == turn.logprobs.tobytes()
    assert shared > 0


def test_each_drawn_token_is_paid_once(steps: Any) -> None:
    shared = 0
    for step in steps:
        forest = Forest.of(to_batch(step))
        drawn: dict[int, int] = {}
        for episode, path in zip(forest.batch.episodes, forest.paths, strict=True):
            for node, turn in zip(path.tolist(), episode.turns, strict=True):
                drawn[node] = len(turn.sampled_ids)
        paid = [episode.ledger for episode in forest.batch.episodes]
        assert sum(ledger.sampled_tokens for ledger in paid) == sum(drawn.values())
        assert sum(ledger.model_calls for ledger in paid) == len(drawn)
        shared += sum(len(path) for path in forest.paths) - len(drawn)
    assert shared > 0


def test_learned_rows_share_the_prefix(trained: Any, steps: Any) -> None:
    batch, credit = assign(steps[0], trained[0].credit)
    rows = to_rows(batch, credit, "searcher")
    assert len(rows) == 12
    ends = [max(span.end for span in trace(row.episode, row.leaf).spans) - 1 for row in rows]
    paths = [trace(row.episode, row.leaf).ids for row in rows]
    prefixes = {path[:length].tobytes() for path, end in zip(paths, ends, strict=True) for length in range(1, end + 1)}
    assert plan(rows, 8192).tokens == len(prefixes) < sum(ends)
    entries = plan(rows, 8192).entries
    assert len(entries) == sum(len(turn.turn.sampled_ids) - turn.turn.forced for row in rows for turn in row.trained)


def test_the_stored_credit_is_the_estimators_on_the_stored_episodes(trained: Any, steps: Any) -> None:
    experiment, out = trained
    with Run.find(out).store(read_only=True) as store:
        stored = list(store.steps("searcher"))
    assert len(stored) == 3
    moved = 0
    for step, groups in zip(stored, steps, strict=True):
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
        assert got.keys() == wanted.keys()
        assert all((values == wanted[key]).all() for key, values in got.items())
        moved += sum(bool(values.any()) for values in got.values())
    assert moved > 0


def test_each_leaf_replays_to_the_bit(trained: Any, steps: Any) -> None:
    for episode in (episode for group in steps[0] for episode in group.episodes):
        replayed = asyncio.run(replay(*trained, episode.id))
        assert replayed.differences == () and replayed.again.ledger == replayed.stored.ledger


def test_a_tree_comes_out_of_another_store_as_it_was(trained: Any, tmp_path: Path) -> None:
    with Run.find(trained[1]).store(read_only=True) as store:
        entries = list(entries_of(store))
    with SQLiteStore(tmp_path / "other.db") as store:
        import_episodes(store, entries)
        store.flush_sync()
        found = list(store.episodes())
    assert [(e.id, e.fork_of, e.ledger, e.reward) for e in found] == [
        (e.episode.id, e.episode.fork_of, e.episode.ledger, e.episode.reward) for e in entries
    ]
    wanted, got = (to_batch([Group("g", None, tuple(each), 1)]) for each in ([e.episode for e in entries], found))
    assert all((one == other).all() for one, other in zip(Forest.of(wanted).paths, Forest.of(got).paths, strict=True))


def test_a_tree_cut_off_goes_on_to_the_same_leaves(warm: Path, tmp_path: Path) -> None:
    experiment = tree_experiment(warm, TREE)
    task = experiment.tasks[0]

    async def sample(folder: str, members: int | None) -> list[Any]:
        with SQLiteStore(tmp_path / folder) as store:
            async with Runtime(experiment, store=store) as runtime:
                if members is None:
                    return list((await runtime.group(task, "g")).episodes)
                for member in range(0, members, 3):
                    await runtime.run(task, group="g", member=member, wanted=6, split="train")
            await store.flush()
        return []

    whole = asyncio.run(sample("a.db", None))
    asyncio.run(sample("b.db", 4))
    again = asyncio.run(sample("b.db", None))
    third = asyncio.run(sample("b.db", None))
    for one, other, read in zip(whole, again, third, strict=True):
        assert (
            (one.id, one.fork_of, one.fork_cut)
            == (other.id, other.fork_of, other.fork_cut)
            == (read.id, read.fork_of, read.fork_cut)
        )
        assert (
            [turn.digest for turn in one.turns] == [turn.digest for turn in other.turns] == [turn.digest for turn in read.turns]
        )


def test_what_a_run_lacks_is_refused_before_the_first_token(warm: Path, tmp_path: Path) -> None:
    def refused(experiment: Any) -> str:
        with pytest.raises(UserError) as error:
            asyncio.run(train(experiment, out=tmp_path / "refused", sinks=[]))
        return str(error.value)

    plain = small(warm, steps=1)
    no_entropy = Scripted(lambda prompt, rng: "", renderer=open_renderer(plain.by_name["searcher"], warm), policy="searcher")

    async def enter() -> None:
        async with Runtime(apply_settings(plain, ["rollout=entropy_tree"]), engine=no_entropy):
            raise AssertionError("it was not refused")

    with pytest.raises(UserError, match=r"EntropyTree cannot run here: .* gives no entropy; --set rollout=random_tree"):
        asyncio.run(enter())
    said = refused(apply_settings(plain, ["credit=tree_grpo"]))
    assert said == "TreeGRPO compares rollouts that branch, Independent gives none; --set rollout=random_tree"
