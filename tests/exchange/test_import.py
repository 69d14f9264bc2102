"""Episodes from files in a store: the same episodes, once, and never in place of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from agentrl.cli import main
from agentrl.episode import Episode, Ledger, Reward
from agentrl.errors import RunLocked, UserError
from agentrl.exchange import (
    FORMATS,
    Entry,
    Imported,
    entries_of,
    export_episodes,
    import_episodes,
    read_entries,
    read_episodes,
    renamed,
)
from agentrl.exchange.taking import journal_of
from agentrl.store.contract import EpisodeFilter, EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from tests.exchange.exchange_values import full_turn, journals, store_one
from tests.exchange.test_exchange import NAMES, Stored, an_episode
from tests.store.store_values import make_effect, make_head, make_turn, same

pytestmark = pytest.mark.drifts  # turns that no engine sampled


def episode_of(name: str, **changes: object) -> Episode:
    """An episode whose ledger counts what its turns hold."""
    turns = (make_turn(0), full_turn())
    paid = Ledger(sampled_tokens=6, prompt_tokens=7, cached_tokens=1, model_calls=2)
    return an_episode(id=name, **({"turns": turns, "ledger": paid} | changes))


def imported(path: Path, entries: list[Entry | Episode], **options: object) -> list[Episode]:
    """Imports into a store; gives all it holds."""
    with SQLiteStore(path) as store:
        import_episodes(store, entries, **options)
        store.flush_sync()
        return list(store.episodes())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(stored=journals())
def test_any_stored_episode_comes_out_of_another_store_as_it_was(
    stored: Stored, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("x")
    episode = store_one(folder / "a.db", *stored)
    (back,) = imported(folder / "b.db", [Entry(stored[0], episode)])
    assert same(back, episode)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_fills_a_store_and_the_heads_are_kept(tmp_path: Path, form: str) -> None:
    if form != "jsonl":
        pytest.importorskip("pyarrow")
        pytest.importorskip("datasets")
    entries = [Entry(make_head(f"e{n}", split="eval", step=n, task={"q": "why?"}), episode_of(f"e{n}")) for n in range(3)]
    entries = [Entry(replace(e.head, seed=2**62, workflow="ab"), e.episode) for e in entries]
    export_episodes(entries, tmp_path / NAMES[form])
    assert same(imported(tmp_path / "b.db", list(read_entries(tmp_path / NAMES[form]))), [e.episode for e in entries])
    with SQLiteStore(tmp_path / "b.db", read_only=True) as store:
        assert same(list(store.heads(EpisodeFilter(split="eval", step=2))), [entries[2].head])


def test_media_come_along(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "a.db") as store:
        digest = store.put_blob(b"picture")
        store.begin(make_head())
        store.append("e1", [make_effect(0, kind="model", turn=make_turn(0, media=(digest,)))])
        store.finish("e1", EpisodeTail("done"))
        store.flush_sync()
        entries = list(entries_of(store))
    imported(tmp_path / "b.db", entries)
    with SQLiteStore(tmp_path / "b.db", read_only=True) as store:
        assert store.blob(digest) == b"picture"
    with pytest.raises(UserError, match="another digest; the file is damaged"):
        imported(tmp_path / "c.db", [Entry(entries[0].head, entries[0].episode, {digest: b"another"})])


def test_a_fork_comes_with_its_parent_and_shares_no_turn(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "a.db") as store:
        store.begin(make_head("p"))
        store.append("p", [make_effect(n, kind="model", turn=make_turn(n)) for n in range(3)])
        store.finish("p", EpisodeTail("done"))
        store.begin(make_head("f", fork_of="p", fork_cut=3))
        store.append("f", [make_effect(7, kind="model", turn=make_turn(7))])
        store.finish("f", EpisodeTail("done"))
        store.flush_sync()
        entries = list(entries_of(store))
    parent, fork = (entry.episode for entry in entries)
    assert len(fork.turns) == 2
    assert same(imported(tmp_path / "b.db", entries), [parent, fork])
    both = imported(tmp_path / "a.db", list(renamed(entries, "x/")))
    assert [(e.id, e.fork_of) for e in both] == [("p", None), ("f", "p"), ("x/p", None), ("x/f", "x/p")]
    assert same(both[3].turns, fork.turns)
    with pytest.raises(UserError, match="'f' is a fork of 'p', which is not before it in the file; export both"):
        imported(tmp_path / "c.db", entries[1:])


def test_what_is_there_the_same_is_passed_over_and_what_differs_is_refused_whole(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "b.db") as store:
        assert import_episodes(store, [episode_of("e1")]) == Imported(1, 0, 0)
        store.flush_sync()
        assert import_episodes(store, [episode_of("e1"), episode_of("e2")]) == Imported(1, 1, 0)
        store.flush_sync()
        other = [episode_of("e3"), episode_of("e2", rewards=(Reward("r", 1.0),))]
        with pytest.raises(UserError, match=r"another episode 'e2'; nothing is imported: give --rename PREFIX"):
            import_episodes(store, other)
        store.flush_sync()
        assert [head.id for head in store.heads()] == ["e1", "e2"]
        assert import_episodes(store, renamed(map(Entry.of, other), "b-")) == Imported(2, 0, 0)
        with pytest.raises(UserError, match="'e9' twice"):
            import_episodes(store, [episode_of("e9"), episode_of("e9")])


def test_an_import_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    episodes = [episode_of(f"e{n}") for n in range(3)]
    with SQLiteStore(tmp_path / "b.db") as store:
        import_episodes(store, episodes[:1])
        head, effects, _ = journal_of(Entry.of(episodes[1]))
        store.begin(head)  # and here it died
        store.append("e1", effects[:2])
    with SQLiteStore(tmp_path / "b.db") as store:
        assert import_episodes(store, episodes) == Imported(2, 1, 0)
        store.flush_sync()
        assert same(list(store.episodes()), episodes)


def test_an_unfinished_episode_of_the_store_is_not_gone_on_with(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "b.db") as store:
        store.begin(make_head("e1"))
        store.append("e1", [make_effect(0)])
    with pytest.raises(UserError, match="unfinished episode 'e1' of its own"):
        imported(tmp_path / "b.db", [episode_of("e1")])


def test_what_had_not_ended_is_left_out_and_counted(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "b.db") as store:
        assert import_episodes(store, [episode_of("e1", status="running"), episode_of("e2")]) == Imported(1, 0, 1)


def test_an_episode_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    wrong = episode_of("e1", ledger=Ledger(sampled_tokens=1000, model_calls=2))
    with pytest.raises(UserError, match="'e1' contradicts itself"):
        imported(tmp_path / "b.db", [wrong])


def test_a_source_may_be_said(tmp_path: Path) -> None:
    (episode,) = imported(tmp_path / "b.db", [episode_of("e1")], source="replay")
    assert episode.source == "replay"


def test_a_run_refuses_ids_that_it_gives_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would take episode 's000001\.002\.0' for its own: give --rename"):
        imported(tmp_path / "b.db", [episode_of("s000001.002.0")], of_run=True)
    assert len(imported(tmp_path / "c.db", [episode_of("x.s000001.002.0")], of_run=True)) == 1


# --- the commands --------------------------------------------------------------------------------------------------------
@pytest.fixture
def filled(tmp_path: Path) -> Path:
    imported(tmp_path / "a.db", [episode_of(f"e{n}", status="done" if n else "failed") for n in range(3)])
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_export_and_import_from_the_command_line(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, file = str(filled / "a.db"), str(filled / "b.db"), str(filled / "f.jsonl")
    assert said(capsys, "export", a, file, "--status", "done,overlong") == f"2 of 3 episodes in {file}\n"
    assert [episode.id for episode in read_episodes(file)] == ["e1", "e2"]
    assert said(capsys, "import", file, b, "--source", "replay") == f"2 episodes imported into {b}\n"
    assert "2 were there already, the same" in said(capsys, "import", file, b, "--source", "replay")
    assert "2 episodes imported" in said(capsys, "import", file, b, "--rename", "again/")
    assert "another episode 'e1'" in said(capsys, "import", file, b, "--source", "teacher", code=1)
    assert "--source dreams is none of policy" in said(capsys, "import", file, b, "--source", "dreams", code=1)
    assert "is a folder and holds no run" in said(capsys, "import", file, str(filled), code=1)
    assert "f.jsonl exists" in said(capsys, "export", a, file, code=1)


HOLD = """
import sys
from agentrl.store.sqlite import SQLiteStore
with SQLiteStore(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def locked(filled: Path) -> Iterator[Path]:
    """A store that another process writes."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(filled / "b.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    yield filled / "b.db"
    holder.stdin.close()
    assert holder.wait(20) == 0
    holder.stdout.close()


def test_a_store_that_a_live_process_writes_is_refused(filled: Path, locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_episodes(read := list(map(Entry.of, [episode_of("e1")])), filled / "f.jsonl")
    with pytest.raises(RunLocked):
        imported(locked, read)
    assert "pid" in said(capsys, "import", str(filled / "f.jsonl"), str(locked), code=1)
