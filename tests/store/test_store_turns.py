import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.effect import Effect
from agentrl.episode import Column, Turn, token_ids
from agentrl.errors import UserError
from agentrl.store.codec import encode_json
from agentrl.store.sqlite import SQLiteStore
from agentrl.store.turns import Interned, Known, decode_turn, encode_turn
from tests.store.store_values import effects, make_effect, make_head, make_turn, same, turns

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@relaxed
@given(turns, st.sampled_from(["main:0", "main:1~2"]))
def test_turn_is_read_back_to_the_bit(turn: Turn, name: str) -> None:
    interned = Interned(())
    meta, tokens = encode_turn(turn, name, "main", interned)
    again = decode_turn(json.loads(encode_json(meta)), tokens, name, "main", Known(interned.fresh))
    assert same(again, turn)


@settings(relaxed, max_examples=25)
@given(st.lists(effects, min_size=1, max_size=6))
def test_journal_is_read_back_to_the_bit_after_the_file_was_reopened(
    tmp_path_factory: pytest.TempPathFactory, journal: list[Effect]
) -> None:
    path = tmp_path_factory.mktemp("store") / "s.db"
    with SQLiteStore(path) as store:
        store.begin(make_head())
        store.append("e1", journal)
    with SQLiteStore(path, read_only=True) as store:
        assert same(store.journal("e1"), tuple(journal))


@pytest.mark.parametrize(("top", "context", "sampled"), [(65_535, 2, 6), (151_936, 3, 7)])
def test_a_sampled_token_takes_at_most_7_bytes_and_a_context_token_3(top: int, context: int, sampled: int) -> None:
    turn = make_turn(0, range(top - 100, top), context_ids=token_ids(range(top - 40, top)))
    _, tokens = encode_turn(turn, turn.id, "main", Interned(()))
    assert len(tokens) == 40 * context + 100 * sampled


def test_arrays_read_back_cannot_be_written(tmp_path: Path) -> None:
    turn = make_turn(0, columns={"entropy": Column("entropy", np.ones(3, np.float16))})
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.append("e1", [make_effect(0, turn=turn, kind="model")])
        store.flush_sync()
        read = store.journal("e1")[0].turn
    assert read is not None
    arrays = (read.context_ids, read.sampled_ids, read.logprobs, read.columns["entropy"].values)
    assert not any(array.flags.writeable for array in arrays)


@pytest.mark.parametrize(
    "turn",
    [
        make_turn(0, context_ids=np.array([1, 2], np.int64)),
        make_turn(0, context_ids=[1, 2]),
        make_turn(0, logprobs=np.zeros(3)),
        make_turn(0, columns={"c": Column("c", np.array([object()]))}),
        make_turn(0, costs={"usd": np.float32(1)}),
    ],
)
def test_a_turn_with_mistyped_values_is_refused_and_nothing_is_queued(tmp_path: Path, turn: Turn) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        with pytest.raises(UserError, match="effect main:0 of episode 'e1' cannot be stored"):
            store.append("e1", [make_effect(0, turn=turn)])
        store.append("e1", [make_effect(1)])
        store.flush_sync()
        assert [effect.key.position for effect in store.journal("e1")] == [1]


def test_what_repeats_is_written_once(tmp_path: Path) -> None:
    for start in (0, 50):  # a second opening finds what the first wrote
        with SQLiteStore(tmp_path / "s.db") as store:
            store.begin(make_head())
            store.append("e1", [make_effect(n, turn=make_turn(n)) for n in range(start, start + 50)])
            store.flush_sync()
            assert store._reading().rows("SELECT kind, count(*) FROM shared GROUP BY kind ORDER BY kind") == [
                ("frame", 1),
                ("version", 1),
            ]
