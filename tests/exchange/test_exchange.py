"""Episodes in files: what is read back is what was stored, to the bit, whatever the format."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from agentrl.episode import FINISHED, Episode
from agentrl.errors import UserError
from agentrl.exchange import FORMATS, SCHEMA, Entry, entries_of, export_episodes, read_entries, read_episodes
from agentrl.exchange.lines import of_line, to_line
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from tests.exchange.exchange_values import NAN, full_turn, journals, store_one
from tests.store.store_values import make_effect, make_head, make_turn, same

pytestmark = pytest.mark.drifts  # turns that no engine sampled
NAMES = {"jsonl": "e.jsonl", "parquet": "e.parquet", "hf": "e"}
Stored = tuple[EpisodeHead, list, EpisodeTail]


def carried(tmp_path: Path, episodes: list[Episode | Entry], form: str) -> list[Entry]:
    """Episodes out into a file of a format and in again."""
    if form != "jsonl":
        pytest.importorskip("pyarrow")
    if form == "hf":
        pytest.importorskip("datasets")
    assert export_episodes(episodes, tmp_path / NAMES[form]) == len(episodes)
    return list(read_entries(tmp_path / NAMES[form]))


def an_episode(**changes: object) -> Episode:
    values: dict[str, object] = {
        "id": "e1", "group": "g1", "task": {"q": "why?"}, "seed": 2**62, "workflow": "ab", "source": "policy", "status": "done",
        "turns": (make_turn(0), full_turn()),
    }  # fmt: skip
    return Episode(**(values | changes))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stored=journals())
def test_any_stored_episode_is_read_back_from_json_lines_and_columns(
    stored: Stored, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("x")
    episode = store_one(folder / "store.db", *stored)
    entry = Entry(stored[0], episode)
    for form in ("jsonl", "parquet"):
        (back,) = carried(folder, [entry], form)
        assert same(back.episode, episode)
        assert same(replace(back.head, fork_forced={}), replace(stored[0], task=episode.task, fork_forced={}))


@pytest.mark.parametrize("form", FORMATS)
def test_every_field_survives_every_format(tmp_path: Path, form: str) -> None:
    episodes = [an_episode(), an_episode(id="e2", turns=()), an_episode(id="e3", turns=(full_turn(),))]
    back = carried(tmp_path, episodes, form)
    assert same([entry.episode for entry in back], episodes)


@pytest.mark.parametrize("form", FORMATS)
def test_the_bits_of_log_probs_survive_in_columns_of_their_own(tmp_path: Path, form: str) -> None:
    (back,) = carried(tmp_path, [an_episode()], form)
    assert back.episode.turns[1].logprobs.tobytes() == NAN.tobytes()
    if form == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / NAMES[form])
        assert table["exact"].null_count == 1  # nothing needed the way round
        assert str(table["turns"].type.value_type.field("logprobs").type) == "list<element: float>"
        assert table.schema.metadata[b"schema"] == SCHEMA.encode()


@pytest.mark.parametrize("form", FORMATS)
def test_the_head_and_the_media_come_along(tmp_path: Path, form: str) -> None:
    head = make_head(fork_forced={"main:3": (1, 2)}, split="eval", step=9, member=1)
    with SQLiteStore(tmp_path / "s.db") as store:
        digest = store.put_blob(b"\x00picture")
        store.begin(head)
        store.append("e1", [make_effect(0, kind="model", turn=make_turn(0, media=(digest,)))])
        store.finish("e1", EpisodeTail("done"))
        store.flush_sync()
        (back,) = carried(tmp_path, list(entries_of(store)), form)
    assert same(back.head, head)
    assert back.blobs == {digest: b"\x00picture"}


def test_floats_of_one_bit_apart_stay_apart_in_json(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    finite = bits[np.isfinite(bits)]
    turn = make_turn(0, range(len(finite)), logprobs=finite)
    line = to_line(Entry.of(an_episode(turns=(turn,))))
    assert of_line(line).episode.turns[0].logprobs.tobytes() == finite.tobytes()
    assert isinstance(json.loads(line)["turns"][0]["logprobs"], list)


def test_a_line_is_strict_json_with_the_schema_first(tmp_path: Path) -> None:
    episode = an_episode(task={"x": float("nan")}, output={"$json": "1"}, metrics={"m": float("inf")})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    line = to_line(Entry.of(episode))
    row = json.loads(line, parse_constant=refuse)
    assert next(iter(row.items())) == ("schema", SCHEMA)
    assert same(of_line(line).episode, episode)


def test_a_plain_line_reads_naturally() -> None:
    row = json.loads(to_line(Entry.of(an_episode(turns=(make_turn(0),)))))
    assert row["task"] == {"q": "why?"}
    assert row["turns"][0]["sampled_ids"] == [5, 6, 7]
    assert row["turns"][0]["logprobs"] == [-1.0, -1.0, -1.0]
    assert row["turns"][0]["text"] == "hello"


def test_a_dataset_is_read_by_its_own_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    episodes = [an_episode(id=f"e{n}", status="done" if n % 2 else "failed") for n in range(6)]
    carried(tmp_path, episodes, "hf")
    carried(tmp_path, episodes, "parquet")
    saved = datasets.load_from_disk(str(tmp_path / "e"))
    parquet = datasets.Dataset.from_parquet(str(tmp_path / "e.parquet"), cache_dir=str(tmp_path / "cache"))
    assert saved["id"][:] == parquet["id"][:] == [f"e{n}" for n in range(6)]
    assert saved[0]["turns"][0]["sampled_ids"] == [5, 6, 7]
    # what a person makes of it is read back too
    parquet.filter(lambda row: row["status"] in FINISHED).to_parquet(str(tmp_path / "done.parquet"))
    assert [episode.id for episode in read_episodes(tmp_path / "done.parquet")] == ["e1", "e3", "e5"]
    saved.select([4, 2]).save_to_disk(str(tmp_path / "two"))
    assert same(list(read_episodes(tmp_path / "two")), [episodes[4], episodes[2]])


def test_a_filter_chooses_what_is_exported(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        for n in range(4):
            store.begin(make_head(f"e{n}", split="eval" if n % 2 else "train", step=n))
        store.finish("e1", EpisodeTail("done"))
        store.flush_sync()
        assert [entry.head.id for entry in entries_of(store, EpisodeFilter(split="eval"))] == ["e1", "e3"]
        assert [entry.head.id for entry in entries_of(store, EpisodeFilter(status=("done",)))] == ["e1"]


@pytest.mark.parametrize("form", FORMATS)
def test_no_episodes_make_a_file_that_reads_as_none(tmp_path: Path, form: str) -> None:
    assert carried(tmp_path, [], form) == []


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"e\.jsonl exists; give another name"):
        export_episodes([an_episode()], tmp_path / "e.jsonl")
    assert (tmp_path / "e.jsonl").read_text() == "mine"


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_nothing_behind(tmp_path: Path, form: str) -> None:
    def breaks():
        yield an_episode()
        raise OSError("no space left on device")

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="no space"):
        export_episodes(breaks(), tmp_path / "out" / NAMES[form])
    assert list((tmp_path / "out").iterdir()) == []


def test_importing_the_package_imports_no_arrow() -> None:
    code = "import sys, agentrl.exchange; print([m for m in ('pyarrow', 'datasets', 'torch') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- bad input -----------------------------------------------------------------------------------------------------------
def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_episodes(path))
    return str(caught.value)


def lines_with(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"{line}\n" for line in (to_line(Entry.of(an_episode())), *lines)))
    return path


def test_a_line_of_another_schema_is_refused_by_number(tmp_path: Path) -> None:
    newer = to_line(Entry.of(an_episode())).replace(SCHEMA, "agentrl.episode/9")
    told = refused(lines_with(tmp_path, newer))
    assert "bad.jsonl:2" in told and "'agentrl.episode/9'" in told and f"'{SCHEMA}' is wanted" in told and "newer" in told
    told = refused(lines_with(tmp_path, "", '{"messages": []}'))
    assert "bad.jsonl:3" in told and "no field `schema`" in told and "agentrl export" in told


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", ":2 is no JSON: "),
        ("[1, 2]", ":2 is no episode: it is a JSON list"),
        (json.dumps({"schema": SCHEMA, "status": "done", "source": "policy"}), ":2 is no episode: it has no field 'ledger'"),
        (json.dumps({"schema": SCHEMA, "status": "fine", "source": "policy"}), "status 'fine' is none of running, done"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    assert says in refused(lines_with(tmp_path, line))


def test_a_line_that_was_cut_off_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(to_line(Entry.of(an_episode()))[:200])
    assert "cut.jsonl:1 is no JSON, and the file ends in it: it was cut off" in refused(path)


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    carried(tmp_path, [an_episode(id=f"e{n}") for n in range(50)], "parquet")
    whole = (tmp_path / "e.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    told = refused(tmp_path / "cut.parquet")
    assert "cut.parquet is no whole Parquet file" in told and "cut off" in told


def test_columns_of_another_schema_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["a"], "reward": [1.0]}), tmp_path / "other.parquet")
    told = refused(tmp_path / "other.parquet")
    assert "has the columns prompt, reward, and no column `schema`" in told and SCHEMA in told
    carried(tmp_path, [an_episode()], "parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    at = table.schema.get_field_index("schema")
    pq.write_table(table.set_column(at, "schema", pa.array(["agentrl.episode/0"])), tmp_path / "old.parquet")
    assert "row 1: it has schema 'agentrl.episode/0'" in refused(tmp_path / "old.parquet")
    pq.write_table(table.drop_columns(["turns", "seed"]), tmp_path / "less.parquet")
    assert "lacks the columns seed, turns" in refused(tmp_path / "less.parquet")


def test_a_store_a_run_and_nothing_are_told_apart(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "store.db").__enter__().__exit__(None, None, None)
    assert "is a store; write what it holds into a file with `agentrl export" in refused(tmp_path / "store.db")
    assert "is a run and no saved dataset" in refused(tmp_path)
    assert "there is no" in refused(tmp_path / "nothing.jsonl")


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'needs pyarrow; pip install "agentrl-runtime\[export\]"'):
        export_episodes([an_episode()], tmp_path / "e.parquet")
    with pytest.raises(UserError, match="does not tell its format"):
        export_episodes([an_episode()], tmp_path / "e.csv")
