"""The credit that a run recorded, read back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from agentrl.episode import EMPTY_MAP, Version
from agentrl.errors import StoreError
from agentrl.learning.replay import from_stored
from agentrl.store.contract import EpisodeHead, EpisodeTail, StoredRow, StoredStep
from agentrl.store.sqlite import SQLiteStore
from agentrl.view.credit import recorded_credit
from tests.view.episodes import episode, turn


def test_the_credit_of_a_run_is_what_its_learner_was_given(run: Path) -> None:
    with SQLiteStore(run / "store.db", read_only=True) as store:
        episodes = list(store.episodes())
        found = recorded_credit(store, episodes)
        rows = [(step.step, row) for step in store.steps("searcher") for row in from_stored(step.rows, episodes)]
        assert len(rows) == 16
        for number, row in rows:
            for trained in row.trained:
                entry = found[row.episode.id][trained.turn.id]
                assert [one.step for one in entry.rows] == [number]
                np.testing.assert_array_equal(entry.rows[0].advantage_S, trained.advantage)
        assert sum(len(turns) for turns in found.values()) == sum(len(row.trained) for _, row in rows)


def test_only_the_steps_that_can_hold_an_episode_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    with SQLiteStore(run / "store.db", read_only=True) as store:
        steps = store.steps

        def counted(policy: str, after: int = -1):
            for step in steps(policy, after):
                read.append(step.step)
                yield step

        monkeypatch.setattr(store, "steps", counted)
        one = next(episode for episode in store.episodes() if episode.id.startswith("s000001"))
        assert recorded_credit(store, [one])[one.id]
    assert read == [1]


def stored(folder: Path, steps: dict[int, tuple[StoredRow, ...]]) -> SQLiteStore:
    """A store with one episode of batch 5 and some steps."""
    store = SQLiteStore(folder / "store.db")
    with store:
        store.begin(EpisodeHead("g7.0", "g7", 0, 1, None, 5, "ab", step=5))
        store.finish("g7.0", EpisodeTail("done"))
        for number, rows in steps.items():
            store.commit_step(StoredStep("p", number, rows, Version("run", "p", number, "ab"), EMPTY_MAP))
        asyncio.run(store.flush())
    return SQLiteStore(folder / "store.db", read_only=True)


def packed(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def test_a_turn_of_several_rows_and_late_steps_has_an_entry_for_each(tmp_path: Path) -> None:
    first, second = turn("x", "a", 0, "t"), turn("y", "a", 1, "t", "x")
    row = StoredRow("g7.0", "x", ("x",), (packed(1.0),), 0.5)
    both = StoredRow("g7.0", "y", ("x", "y"), (packed(3.0), packed(1.0, 2.0, 3.0)))
    another = StoredRow("g8.0", "x", ("x",), (packed(9.0),))
    with stored(tmp_path, {4: (row,), 5: (row, another), 7: (both,), 8: (both,)}) as store:
        found = recorded_credit(store, [episode([first, second])], within=2)["g7.0"]
        only = recorded_credit(store, [episode([first, second])])["g7.0"]
    assert [(entry.step, entry.leaf, entry.weight) for entry in found["x"].rows] == [(5, "x", 0.5), (7, "y", 1.0)]
    assert found["x"].mean == 2.0
    assert str(found["x"]) == "+2 in 2 rows"
    assert found["y"].advantage_S.tolist() == [1.0, 2.0, 3.0]
    assert list(only) == ["x"]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [("x", (1.0, 2.0), "has 2 advantages for turn x, which has 3"), ("z", (1.0,), "is of turn z, which")],
)
def test_rows_that_do_not_fit_the_episode_are_damage(tmp_path: Path, name: str, values: tuple[float, ...], said: str) -> None:
    row = StoredRow("g7.0", name, (name,), (packed(*values),))
    with stored(tmp_path, {5: (row,)}) as store, pytest.raises(StoreError, match=said):
        recorded_credit(store, [episode([turn("x", "a", 0, "t")])])
