import asyncio
import sqlite3
import struct
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.effect import Effect
from agentrl.episode import Failure, Ledger, Reward, Version
from agentrl.errors import StoreError, UserError
from agentrl.store.contract import EpisodeFilter, EpisodeTail, Store, StoredRow, StoredStep
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn, same

TAIL = EpisodeTail(
    status="failed",
    output={"answer": [1, None]},
    rewards=(Reward("exact", 0.5), Reward("style", 1.0, "main:0", "solver")),
    metrics={"turns": 2.0},
    ledger=Ledger(1, 2, 3, 4, 5, 6, 7, {"usd": 0.25}),
    failure=Failure("tool", "it hung"),
    stops=(("solver", "answered"), ("critic", "turn_limit")),
    seconds=12.5,
)
STEP = StoredStep(
    policy="solver",
    step=4,
    rows=(
        StoredRow("e1", "main:1", ("main:0", "main:1"), (struct.pack("<f", 0.5), struct.pack("<2f", -1.0, 2.0)), 0.25),
        StoredRow("e2", "main:0", ("main:0",), (b"",)),
    ),
    before=Version("run/with/slash", "solver", 3, "d#1"),
    stats={"loss": 0.125},
    state={"cursor": [1, 2]},
)


def fill(store: SQLiteStore, name: str, effects: int = 0, **head: Any) -> None:
    store.begin(make_head(name, **head))
    store.append(name, [make_effect(n, value=f"{name} {n}") for n in range(effects)])


def values(journal: tuple[Effect, ...]) -> list[Any]:
    return [effect.value for effect in journal]


def test_it_is_a_store(tmp_path: Path) -> None:
    store: Store = SQLiteStore(tmp_path / "s.db")
    with store as entered:
        assert entered is store


def test_heads_come_back_equal_in_the_order_of_begin(tmp_path: Path) -> None:
    heads = [
        make_head("z", fork_forced={"main:3": (1, 2)}, source="teacher", split="serve", step=9),
        make_head("a", task=None, fork_of="z", fork_cut=2),
        *(make_head(f"many-{n}") for n in range(600)),
    ]
    with SQLiteStore(tmp_path / "s.db") as store:
        for head in heads:
            store.begin(head)
        store.flush_sync()
        assert list(store.heads()) == heads


def test_a_tail_comes_back_equal_and_is_none_before_the_end(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1")
        store.flush_sync()
        assert store.tail("e1") is None
        store.finish("e1", TAIL)
        store.flush_sync()
        assert same(store.tail("e1"), TAIL)


def test_an_episode_is_folded_from_its_journal(tmp_path: Path) -> None:
    turn = make_turn(0)
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.append("e1", [make_effect(0, turn=turn, kind="model")])
        store.flush_sync()
        assert store.episode("e1").status == "running"
        store.finish("e1", TAIL)
        store.flush_sync()
        episode = store.episode("e1")
    assert (episode.status, episode.output, episode.failure, episode.seconds) == ("failed", TAIL.output, TAIL.failure, 12.5)
    own, style = TAIL.rewards
    assert episode.rewards == (own,), "a reward that names a turn belongs to that turn"
    assert same(episode.turns, (replace(turn, rewards=(*turn.rewards, style)),))


def test_a_filter_gives_what_its_fields_say_together(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "a", group="g1", split="train", step=1)
        fill(store, "b", group="g1", split="eval", step=2, source="teacher")
        fill(store, "c", group="g2", split="train", step=2)
        store.finish("a", EpisodeTail("done"))
        store.finish("b", EpisodeTail("overlong"))
        store.flush_sync()

        def ids(**where: Any) -> str:
            assert [e.id for e in store.episodes(EpisodeFilter(**where))] == [h.id for h in store.heads(EpisodeFilter(**where))]
            return "".join(head.id for head in store.heads(EpisodeFilter(**where)))

        assert ids(group="g1") == "ab"
        assert ids(split="train") == "ac"
        assert ids(step=2) == "bc"
        assert ids(source="teacher") == "b"
        assert ids(ids=("c", "a", "nowhere")) == "ac"
        assert ids(ids=()) == ""
        assert ids(status=("running",)) == "c"
        assert ids(status=("running", "done")) == "ac"
        assert ids(status=("done", "overlong"), split="eval") == "b"
        assert ids(group="g2", source="teacher") == ""
        assert store.counts() == {"running": 1, "done": 1, "overlong": 1}


def test_episodes_are_read_lazily(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "a")
        store.flush_sync()
        reading = store.episodes()
        fill(store, "b")
        store.flush_sync()
        assert [episode.id for episode in reading] == ["a", "b"]


@pytest.mark.parametrize("read", ["episode", "journal", "tail"])
def test_an_unknown_id_raises_naming_near_ones(tmp_path: Path, read: str) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "train-00017")
        store.flush_sync()
        with pytest.raises(UserError, match=r"no episode 'train-0017'.*did you mean train-00017"):
            getattr(store, read)("train-0017")


def test_a_fork_begins_with_what_its_line_of_parents_completed_before_the_cut(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "root", effects=3)  # completed 1, 3, 5
        store.append("root", [make_effect(9, value="intent", status="intent", completed=-1)])
        store.begin(make_head("child", fork_of="root", fork_cut=5))
        store.append("child", [make_effect(2, value="child 2", completed=5), make_effect(3, value="child 3", completed=7)])
        store.begin(make_head("grandchild", fork_of="child", fork_cut=6))
        store.append("grandchild", [make_effect(3, value="grandchild 3")])
        store.begin(make_head("early", fork_of="child", fork_cut=2))
        store.flush_sync()
        assert values(store.journal("root")) == ["root 0", "root 1", "root 2", "intent"]
        assert values(store.journal("child")) == ["root 0", "root 1", "child 2", "child 3"]
        assert values(store.journal("grandchild")) == ["root 0", "root 1", "child 2", "grandchild 3"]
        assert values(store.journal("early")) == ["root 0"]


def test_a_fork_of_an_unknown_episode_is_refused(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store, pytest.raises(UserError, match="no episode 'nowhere'"):
        store.begin(make_head(fork_of="nowhere", fork_cut=1))


def test_intents_stand_in_queue_order(tmp_path: Path) -> None:
    intent = make_effect(0, status="intent", completed=-1)
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.append("e1", [intent, make_effect(1)])
        store.append("e1", [make_effect(0)])
        store.flush_sync()
        assert [(e.key.position, e.status) for e in store.journal("e1")] == [(0, "intent"), (1, "ok"), (0, "ok")]


def test_a_reward_given_after_the_end_is_part_of_the_episode(tmp_path: Path) -> None:
    merged, nice = Reward("merged", 1.0), Reward("nice", 2.0, turn="main:0", agent="solver")
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.append("e1", [make_effect(0, turn=make_turn(0), kind="model")])
        store.finish("e1", EpisodeTail("done", rewards=(Reward("exact", 0.5),)))
        store.reward("e1", merged)  # its tail is still queued
        store.flush_sync()
    with SQLiteStore(tmp_path / "s.db") as store:
        store.reward("e1", nice)
        store.flush_sync()
        episode, tail = store.episode("e1"), store.tail("e1")
        with pytest.raises(UserError, match="no episode 'e2'"):
            store.reward("e2", merged)
    assert tail is not None and tail.rewards == (Reward("exact", 0.5), merged, nice)
    assert set(episode.rewards) == {Reward("exact", 0.5), merged}
    assert episode.turns[0].rewards == (nice,)


def test_an_ended_episode_takes_no_more_effects_and_no_second_tail(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1")
        store.finish("e1", EpisodeTail("done"))
        for call in (lambda: store.append("e1", [make_effect(0)]), lambda: store.finish("e1", EpisodeTail("done"))):
            with pytest.raises(UserError, match="not open here"):
                call()
        for _ in ("still queued", "in the file"):
            with pytest.raises(UserError, match="has ended"):
                store.begin(make_head())
            store.flush_sync()


def test_begin_on_an_unfinished_episode_keeps_head_and_journal(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1", effects=2)
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head("e1", created=99.0))
        store.begin(make_head("e1", created=99.0))  # twice is once
        store.append("e1", [make_effect(2, value="e1 2")])
        store.flush_sync()
        assert values(store.journal("e1")) == ["e1 0", "e1 1", "e1 2"]
        assert [head.created for head in store.heads()] == [1.5]


def test_large_values_become_blobs_and_are_read_back(tmp_path: Path) -> None:
    large = {"page": "Ω" * 40_000}
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head(task=large))
        store.append(
            "e1",
            [make_effect(0, value=large), make_effect(1, value=large), make_effect(2, turn=make_turn(2, text="x" * 70_000))],
        )
        store.finish("e1", EpisodeTail("done", output="o" * 70_000))
        store.commit_step(replace(STEP, state=large))
        store.flush_sync()
        first, second, third = store.journal("e1")
        tail = store.tail("e1")
        assert first.value == second.value == large == next(store.heads()).task == next(store.steps("solver")).state
        assert third.turn is not None and third.turn.text == "x" * 70_000
        assert tail is not None and tail.output == "o" * 70_000
        assert store._reading().rows("SELECT count(*) FROM blob") == [(3,)]


def test_a_value_is_recorded_as_it_was_when_handed_over(tmp_path: Path) -> None:
    messages = ["first"]
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.append("e1", [make_effect(0, value=messages)])
        messages.append("second")
        store.flush_sync()
        assert values(store.journal("e1")) == [["first"]]


def test_a_blob_is_stored_once_under_its_digest(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        digests = {store.put_blob(b"payload" * 10) for _ in range(3)}
        (digest,) = digests
        store.flush_sync()
        assert store.blob(digest) == b"payload" * 10
        assert len(digest) == 64
        assert store._reading().rows("SELECT count(*) FROM blob") == [(1,)]
        with pytest.raises(UserError, match="no blob"):
            store.blob("0" * 64)
        with pytest.raises(UserError, match="no blob digest"):
            store.blob("picture")


def test_steps_come_back_equal_in_order_of_their_number(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        for step in (4, 2, 7):
            store.commit_step(replace(STEP, step=step))
        store.commit_step(replace(STEP, policy="other", rows=(), state=None))
        store.flush_sync()
        assert same(list(store.steps("solver")), [replace(STEP, step=step) for step in (2, 4, 7)])
        assert [step.step for step in store.steps("solver", after=2)] == [4, 7]
        assert list(store.steps("other")) == [replace(STEP, policy="other", rows=(), state=None)]
        assert list(store.steps("nobody")) == []


@pytest.mark.parametrize("reopened", [False, True])
def test_a_repeated_step_is_passed_over_and_a_differing_one_refused(tmp_path: Path, reopened: bool) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(SQLiteStore(tmp_path / "s.db"))
        store.commit_step(STEP)
        if reopened:
            stack.close()
            store = stack.enter_context(SQLiteStore(tmp_path / "s.db"))
        store.commit_step(STEP)
        for other in (
            replace(STEP, stats={}),
            replace(STEP, rows=STEP.rows[::-1]),
            replace(STEP, before=Version("r", "solver", 3)),
        ):
            with pytest.raises(StoreError, match="step 4 of policy 'solver' is committed already"):
                store.commit_step(other)
        store.flush_sync()
        assert list(store.steps("solver")) == [STEP]


def test_of_several_steps_all_are_committed_or_none(tmp_path: Path) -> None:
    other = replace(STEP, policy="other")
    with SQLiteStore(tmp_path / "s.db") as store:
        store.commit_step(STEP)
        with pytest.raises(StoreError, match="step 4 of policy 'solver' is committed already"):
            store.commit_step(other, replace(STEP, stats={}))
        store.flush_sync()
        assert list(store.steps("other")) == []
        store.commit_step(other, STEP)
        store.flush_sync()
        assert list(store.steps("other")) == [other]


async def test_flush_makes_all_queued_before_readable(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        for n in range(1000):
            store.append("e1", [make_effect(n, value=n)])
        await store.flush()
        assert values(store.journal("e1")) == list(range(1000))


async def test_a_cancelled_flush_leaves_the_store_working(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await store.flush()
        store.append("e1", [make_effect(0)])
        await store.flush()
        assert len(store.journal("e1")) == 1


def test_flush_works_from_one_event_loop_after_another(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        for n in range(3):
            store.append("e1", [make_effect(n)])
            asyncio.run(store.flush())
            assert len(store.journal("e1")) == n + 1


def test_leaving_the_block_commits_what_is_queued(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1", effects=700)
    with SQLiteStore(tmp_path / "s.db", read_only=True) as store:
        assert len(store.journal("e1")) == 700


@pytest.mark.parametrize("changes", [{"task": {1, 2}}, {"id": "half \ud800"}, {"step": 1 << 63}, {"seed": b"x"}])
def test_a_head_that_cannot_be_stored_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        with pytest.raises(UserError):
            store.begin(make_head(**changes))
        store.begin(make_head())
        store.flush_sync()
        assert [head.id for head in store.heads()] == ["e1"]


def test_a_store_is_used_within_its_block_only(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db")
    with pytest.raises(StoreError, match="not open"):
        store.begin(make_head())
    with store:
        fill(store, "e1")
    for call in (lambda: store.append("e1", [make_effect(0)]), store.flush_sync, lambda: store.episode("e1")):
        with pytest.raises(StoreError, match="is closed"):
            call()
    with pytest.raises(StoreError, match="opened before"):
        store.__enter__()


def test_the_log_is_folded_into_the_file_at_the_end(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1", effects=10)
        store.flush_sync()
        assert len(store.journal("e1")) == 10
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s.db", "s.db.lock"]


def test_the_log_is_synced_at_every_commit(tmp_path: Path) -> None:
    """Kill -9 cannot tell FULL from NORMAL, only a power cut can; so the setting itself is held."""
    with SQLiteStore(tmp_path / "s.db") as store:
        assert store._writer is not None
        assert store._writer._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._writer._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "change", ["UPDATE effect SET note = 'x'", "DELETE FROM tail", "UPDATE episode SET step = 1", "DELETE FROM blob"]
)
def test_the_file_itself_refuses_changes_to_the_record(tmp_path: Path, change: str) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        fill(store, "e1", effects=1)
        store.finish("e1", EpisodeTail("done"))
        store.put_blob(b"x")
    with closing(sqlite3.connect(tmp_path / "s.db")) as shell, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        shell.execute(change)


@pytest.mark.parametrize(("name", "value"), [("commit_seconds", 0.5), ("commit_seconds", -1), ("lease_seconds", 0)])
def test_times_that_cannot_be_kept_are_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        SQLiteStore(tmp_path / "s.db", **{name: value})
