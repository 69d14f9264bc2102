"""Trees that branch inside turns, on the real engine: drawn once, recorded, learned with what was inherited, replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import UserError, train
from agentrl.config import apply_settings
from agentrl.credit import Forest, assign, to_batch
from agentrl.credit.compare import read_steps
from agentrl.credit.tree import as_drawn, shared
from agentrl.engines.contract import EngineInfo, Offers
from agentrl.engines.scripted import Scripted
from agentrl.evaluate import replay
from agentrl.learning.local import LocalLearner
from agentrl.learning.packing import plan
from agentrl.learning.replay import from_stored, relearn, to_stored
from agentrl.learning.rows import to_rows
from agentrl.run import Run
from agentrl.runtime.policies import open_renderer
from agentrl.runtime.runtime import Runtime
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from tests.train.small import small

SEGMENTS = ["rollout=segment_tree", "rollout.size=6", "rollout.segment=7", "rollout.first=2,3"]
METHODS = {
    "treepo": [*SEGMENTS, "credit=treepo"],
    "tree_grpo": [*SEGMENTS, "credit=tree_grpo"],
    "arpo hard": [*SEGMENTS, "credit=arpo_agentic", "credit.shared=hard"],
    "tree_opo": [*SEGMENTS, "credit=tree_opo"],
    "spo_tree": [
        "rollout=fixed_tree",
        "rollout.branching=2,2,2",
        "rollout.segment=7",
        "credit=spo_tree",
        "credit.certain=0.99",
    ],
}


def segmented(warm: Path, settings: list[str], **changes: Any) -> Any:
    return apply_settings(small(warm, steps=2, eval_every=0, held_out=(), **changes), settings)


@pytest.fixture(scope="module", params=METHODS, ids=str)
def trained(request: Any, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """Two steps of two tasks: the experiment, the run, its checkpoint."""
    experiment = segmented(warm, METHODS[request.param])
    out = tmp_path_factory.mktemp("segments") / "run"
    result = asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out, result


@pytest.fixture
def steps(trained: Any) -> Any:
    with Run.find(trained[1]).store(read_only=True) as store:
        return read_steps(store, EpisodeFilter(split="train"), tokens=True)


def test_forks_begin_inside_turns_with_what_their_parent_drew_and_recorded(steps: Any) -> None:
    inside = 0
    for group in (group for step in steps for group in step):
        known = {episode.id: episode for episode in group.episodes}
        for fork in (episode for episode in group.episodes if episode.fork_of):
            parent = known[fork.fork_of]
            turn = fork.turns[shared(fork, parent)]
            drawn = as_drawn(turn, fork, known)
            inside += turn.forced > 0
            assert drawn.forced == 0
            kept = as_drawn(parent.by_id[turn.id], parent, known)
            assert turn.sampled_ids[: turn.forced].tolist() == kept.sampled_ids[: turn.forced].tolist()
            assert drawn.logprobs[: turn.forced].tobytes() == kept.logprobs[: turn.forced].tobytes()
            assert drawn.logprobs[turn.forced :].tobytes() == turn.logprobs[turn.forced :].tobytes()
    assert inside > 0


def test_each_drawn_token_is_paid_once(steps: Any) -> None:
    for step in steps:
        forest = Forest.of(to_batch(step))
        stretches = forest.stretches
        tokens = (stretches.end - stretches.start)[forest.first_sight()]
        assert len(tokens) < len(stretches.turn)
        assert sum(episode.ledger.sampled_tokens for episode in forest.batch.episodes) == tokens.sum()


def test_the_stored_credit_is_the_estimators_on_the_stored_episodes(trained: Any, steps: Any) -> None:
    experiment, out, _ = trained
    with Run.find(out).store(read_only=True) as store:
        stored = list(store.steps("searcher"))
        known = {episode.id: episode for episode in store.episodes(EpisodeFilter(split="train"))}
    moved = inherited = 0
    for step, groups in zip(stored, steps, strict=True):
        batch, credit = assign(groups, experiment.credit)
        rows = to_rows(batch, credit, "searcher")
        assert to_stored(rows) == step.rows
        again, entries = from_stored(step.rows, known), plan(rows, 8192).entries
        for name in ("position", "target", "behaviour", "advantage"):
            assert getattr(plan(again, 8192).entries, name).tolist() == getattr(entries, name).tolist()
        turns = [(row.episode.by_id[trained.turn.id], trained) for row in rows for trained in row.trained]
        inherited += sum(int((trained.places < turn.forced).sum()) for turn, trained in turns)
        moved += int(np.count_nonzero(entries.advantage))
    # SPO trains each segment once, where it was drawn; Tree-OPO no prefix at all
    assert moved > 0 and (inherited > 0) == (credit.inherited and credit.mask is None)


def test_the_steps_are_learned_again_to_the_bit(trained: Any, warm: Path) -> None:
    experiment, out, result = trained
    run = Run.find(out)
    with run.store(read_only=True) as store:
        policy = experiment.by_name["searcher"]
        learner = LocalLearner("searcher", warm, experiment.objective, optimiser=policy.optimiser, lineage=run.lineage)
        relearn(store, "searcher", learner)
    again = {name: tensor.clone() for name, tensor in learner.weights().items()}
    stored = LocalLearner("searcher", warm, experiment.objective, optimiser=policy.optimiser, lineage=run.lineage)
    stored.restore(result.policies["searcher"])
    assert learner.version == stored.version and learner.version.step > 0
    assert all(bool((again[name] == tensor).all()) for name, tensor in stored.weights().items())


def test_each_leaf_replays_to_the_bit(trained: Any, steps: Any) -> None:
    experiment, out, _ = trained
    for episode in (episode for group in steps[0] for episode in group.episodes):
        replayed = asyncio.run(replay(experiment, out, episode.id))
        assert replayed.differences == () and replayed.again.ledger == replayed.stored.ledger


def test_a_tree_cut_off_goes_on_to_the_same_leaves(warm: Path, tmp_path: Path) -> None:
    experiment = segmented(warm, METHODS["treepo"])
    task = experiment.tasks[0]

    async def sample(folder: str, roots: int = 0) -> list[Any]:
        with SQLiteStore(tmp_path / folder) as store:
            async with Runtime(experiment, store=store) as runtime:
                for member in range(roots):
                    await runtime.run(task, group="g", member=member, wanted=6, split="train")
                episodes = list((await runtime.group(task, "g")).episodes) if not roots else []
            await store.flush()
        return episodes

    whole = asyncio.run(sample("a.db"))
    asyncio.run(sample("b.db", roots=2))
    again, read = asyncio.run(sample("b.db")), asyncio.run(sample("b.db"))
    facts = [
        [(e.id, e.fork_of, e.fork_cut, [(turn.forced, turn.digest) for turn in e.turns]) for e in episodes]
        for episodes in (whole, again, read)
    ]
    assert facts[0] == facts[1] == facts[2] and any(turn.forced for e in whole for turn in e.turns)


@pytest.mark.parametrize("rollout", ["segment_tree", "fixed_tree", "monte_carlo"])
def test_an_engine_that_takes_no_forced_prefix_is_refused_before_the_first_token(warm: Path, rollout: str) -> None:
    experiment = apply_settings(small(warm, steps=1), [f"rollout={rollout}"])
    engine = Scripted(lambda prompt, rng: "", renderer=open_renderer(experiment.by_name["searcher"], warm), policy="searcher")
    info = engine.info
    engine._info = EngineInfo(info.name, info.vocab_size, info.max_context, Offers(forced_prefix=False))  # pyright: ignore[reportPrivateUsage]

    async def enter() -> None:
        async with Runtime(experiment, engine=engine):
            raise AssertionError("it was not refused")

    with pytest.raises(UserError, match=r"cannot run here: it goes on from inside a turn, .* --set rollout=random_tree"):
        asyncio.run(enter())
