from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.effect import Effect, EffectKey
from agentrl.episode import Parent
from agentrl.errors import LearnerError, UserError
from agentrl.learning import Row, TrainedTurn, from_stored, relearn, to_stored
from agentrl.learning.local import LocalLearner
from agentrl.objectives import Clipped
from agentrl.store.contract import EpisodeHead, EpisodeTail, StoredStep
from agentrl.store.sqlite import SQLiteStore

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


def facts(rows):
    return [
        (row.episode.id, row.leaf.id, row.weight, [(item.turn.id, item.advantage.tobytes()) for item in row.trained])
        for row in rows
    ]


@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4), st.floats(0, 10), st.booleans())
def test_stored_rows_come_back_to_the_bit(turn, episode, values, weight, equal):
    if equal:
        values = [[line[0]] * len(line) for line in values]
    turns = tuple(turn(str(i), [1], [2] * len(line), index=i) for i, line in enumerate(values))
    run = episode("e", turns)
    trained = tuple(TrainedTurn(t, np.array(line, np.float32)) for t, line in zip(turns, values, strict=True))
    rows = [Row(run, turns[-1], trained, weight)]
    stored = to_stored(rows)
    back = from_stored(stored, {"e": run})
    assert facts(back) == facts(rows)
    assert to_stored(back) == stored
    if equal:
        assert all(len(packed) == 4 for packed in stored[0].advantages)


def test_rows_of_episodes_that_are_not_there_are_refused_by_name(batch_rows):
    stored = to_stored(batch_rows)
    episodes = {row.episode.id: row.episode for row in batch_rows}
    assert facts(from_stored(stored, list(episodes.values()))) == facts(batch_rows)
    with pytest.raises(UserError, match="episode fork"):
        from_stored(stored, {name: episode for name, episode in episodes.items() if name != "fork"})
    with pytest.raises(UserError, match="turn 2"):
        cut = replace(episodes["chain0"], turns=episodes["chain0"].turns[:2])
        from_stored(stored, {**episodes, "chain0": cut})


def named(episode):
    """The episode with its turns under the ids that a journal gives them."""
    names = {turn.id: str(EffectKey("main", 0, number)) for number, turn in enumerate(episode.turns)}
    turns = []
    for turn in episode.turns:
        parent = Parent(names[turn.parent.turn], turn.parent.kept) if turn.parent else None
        turns.append(replace(turn, id=names[turn.id], parent=parent))
    return replace(episode, turns=tuple(turns))


def record(store, episode):
    store.begin(EpisodeHead(episode.id, episode.group, 0, 1, None, 0, ""))
    effects = [
        Effect(EffectKey("main", 0, n), "model", "p", bytes(16), "", 2 * n, 2 * n + 1, 0.0, turn=turn)
        for n, turn in enumerate(episode.turns)
    ]
    store.append(episode.id, effects)
    store.finish(episode.id, EpisodeTail("done"))


async def test_learning_again_from_the_store_gives_the_same_weights(model, tree, rows_of, tmp_path):
    episodes = [named(tree(f"e{i}", i, (None, 0, 0, 1), prompt=(3, 4))) for i in range(6)]
    rows = [row for seed, episode in enumerate(episodes) for row in rows_of(episode, seed)]
    learner = LocalLearner("p", model, Clipped())
    with SQLiteStore(tmp_path / "store.db") as store:
        for episode in episodes:
            record(store, episode)
        for batch, part in enumerate((rows[:6], [], rows[6:12], rows[12:])):
            store.commit_step(StoredStep("p", batch, to_stored(part), learner.version))
            if part:
                learner.step(part)
            if batch == 1:
                learner.save(tmp_path / "checkpoint")
                middle = learner.version
        await store.flush()
        afresh = LocalLearner("p", model, Clipped())
        assert relearn(store, "p", afresh, until=1) == middle
        assert relearn(store, "p", afresh) == learner.version
        resumed = LocalLearner("p", model, Clipped())
        resumed.restore(tmp_path / "checkpoint")
        assert relearn(store, "p", resumed) == learner.version
        stranger = LocalLearner("p", model, Clipped(), lineage="another run")
        with pytest.raises(LearnerError, match="restore the checkpoint of that version"):
            relearn(store, "p", stranger)
