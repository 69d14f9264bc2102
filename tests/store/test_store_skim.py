"""Episodes without their tokens are the episodes, but for what belongs to tokens."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.episode import Candidate, Column, Episode, Probe, Reward, Segment, State, ToolCall, Turn
from agentrl.errors import StoreError
from agentrl.store.codec import LARGE
from agentrl.store.contract import EpisodeFilter, EpisodeTail
from agentrl.store.reader import PAGE
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn, same

OF_TOKENS = ("context_ids", "sampled_ids", "logprobs", "digest", "segments", "columns", "probes")


def call(position: int, output: str = "found") -> Any:
    value = {
        "turn": f"main:{position - 1}", "arguments": {"query": "lima"}, "status": "ok", "output": output, "started": 0.5,
        "ended": 0.6, "attempts": 1, "truncated": False, "call_id": f"call_{position}", "data": {},
    }  # fmt: skip
    return make_effect(position, value, kind="tool", name="search")


def note(position: int, name: str, /, **value: Any) -> Any:
    return make_effect(position, value, kind="note", name=name)


def write(store: SQLiteStore) -> None:
    """Everything that can be said of a turn, by the turn itself and by other effects."""
    probe = Probe("truth", 1, np.array([1, 2], np.int32), np.array([-1.0, -2.0], np.float32), None, 0.5)
    full = make_turn(
        0, state=State("before"), rewards=(Reward("own", 0.5, "main:0"),), probes=(probe,), segments=(Segment("user", 0, 1),),
        columns={"entropy": Column("entropy", np.zeros(3, np.float32))}, valid=False, untrained="why",
        tool_calls=(ToolCall("first", {}, "ok", "", 0.0, 0.1),),
    )  # fmt: skip
    store.begin(make_head("e1"))
    store.append("e1", [make_effect(0, turn=full, kind="model"), call(1), make_effect(2, turn=make_turn(2), kind="model")])
    store.append(
        "e1", [call(3, output="long " * LARGE), note(4, "state", turn="main:2", before="a", after="b", action="c", raw="d")]
    )
    store.append("e1", [note(5, "valid", turn="main:2"), note(6, "observation", turn="main:2", text="seen")])
    store.append(
        "e1", [note(7, "candidate", turn="main:2", set="s", index=1, chosen=True), note(8, "metric", name="m", value=2.0)]
    )
    store.append("e1", [make_effect(9, {"name": "r", "value": 1.0, "turn": "main:2", "agent": None}, kind="reward")])
    store.append(
        "e1", [make_effect(10, turn=make_turn(10), kind="model", status="lost"), note(11, "stop", agent="a", reason="answered")]
    )
    score = {"turn": "main:2", "probe": "p", "position": 0, "ids": [7], "logprobs": [-0.5], "version": None, "value": None}
    store.append("e1", [make_effect(12, score, kind="score"), make_effect(13, {"turn": "main:0"}, kind="effect")])
    store.finish("e1", EpisodeTail("done", "out", (Reward("end", 1.0), Reward("late", 2.0, "main:0")), {"n": 1.0}, seconds=3.0))
    store.reward("e1", Reward("merged", 4.0, turn="main:0"))
    store.begin(make_head("running"))
    store.append("running", [make_effect(0, turn=make_turn(0), kind="model")])
    store.begin(make_head("child", fork_of="e1", fork_cut=6))
    store.append("child", [make_effect(20, turn=make_turn(20), kind="model")])
    store.flush_sync()


def without_tokens(episode: Episode) -> list[Any]:
    kept = [field.name for field in fields(Turn) if field.name not in OF_TOKENS]
    turns = [[getattr(turn, name) for name in kept] for turn in episode.turns]
    return [turns, *(getattr(episode, field.name) for field in fields(Episode) if field.name not in ("turns", "ledger"))]


def test_all_but_tokens_is_as_in_the_episode(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        write(store)
        skimmed, whole = {head.id: episode for head, episode in store.skim()}, list(store.episodes())
    assert list(skimmed) == ["e1", "running", "child"]
    for episode in whole:
        mine = skimmed[episode.id]
        left, right = without_tokens(mine), without_tokens(episode)
        left[-1] = right[-1] if episode.status == "running" else left[-1]  # the clock of a running one is not read
        assert all(same(a, b) for a, b in zip(left, right, strict=True))
    turns = skimmed["e1"].turns
    assert turns[1].candidate == Candidate("s", 1, True) and turns[0].rewards[-1].value == 2.0
    assert len(turns[1].tool_calls[0].output) > LARGE


def test_arrays_are_as_long_as_they_are_and_hold_nothing_that_could_be_real(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        write(store)
        ((_, skimmed),) = store.skim(EpisodeFilter(ids=("e1",)))
        whole = store.episode("e1")
    for mine, turn in zip(skimmed.turns, whole.turns, strict=True):
        for name in ("context_ids", "sampled_ids", "logprobs"):
            got, there = getattr(mine, name), getattr(turn, name)
            assert (got.dtype, got.shape) == (there.dtype, there.shape) and not got.flags.writeable
        assert (mine.sampled_ids == -1).all() and (mine.context_ids == -1).all() and np.isnan(mine.logprobs).all()
        assert mine.columns == {} and mine.segments == () and mine.digest == b""
        assert [(probe.name, probe.value) for probe in mine.probes] == [(probe.name, probe.value) for probe in turn.probes]


def test_it_goes_on_from_page_to_page_and_takes_filters(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        for n in range(PAGE + 3):
            store.begin(make_head(f"e{n}", split="train" if n % 2 else "eval"))
            store.append(f"e{n}", [make_effect(0, turn=make_turn(0), kind="model")])
        store.flush_sync()
        assert [head.id for head, _ in store.skim()] == [f"e{n}" for n in range(PAGE + 3)]
        assert [e.id for _, e in store.skim(EpisodeFilter(split="train"))] == [f"e{n}" for n in range(1, PAGE + 3, 2)]
        assert list(store.skim(EpisodeFilter(split="nowhere"))) == []


def test_damage_is_named(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        write(store)
    import sqlite3

    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("DROP TRIGGER effect_no_update")
        connection.execute("UPDATE effect SET turn = '{}, {}' WHERE seq = 1")
    connection.close()
    with (
        SQLiteStore(tmp_path / "s.db", read_only=True) as store,
        pytest.raises(StoreError, match="damaged at the episodes e1 to"),
    ):
        list(store.skim())


def test_a_folded_copy_leaves_the_journals_turns_alone(tmp_path: Path) -> None:
    from agentrl.store.fold import fold

    effects = [make_effect(0, turn=make_turn(0), kind="model"), call(1)]
    episode = fold(make_head(), effects, None)
    assert effects[0].turn is not None and effects[0].turn.tool_calls == () and len(episode.turns[0].tool_calls) == 1
    again = fold(make_head(), [replace(effect) for effect in effects], None, fresh=True)
    assert again.turns[0] is effects[0].turn and again.turns[0].tool_calls == episode.turns[0].tool_calls
