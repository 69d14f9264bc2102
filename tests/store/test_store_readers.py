import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentrl.errors import UserError
from agentrl.store.contract import EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn

ROOT = Path(__file__).parents[2]
READER = """
import sys
from agentrl.store.sqlite import SQLiteStore
with SQLiteStore(sys.argv[1], read_only=True) as store:
    for line in sys.stdin:
        print(len(store.journal("e1")), store.counts()["running"], flush=True)
"""


def test_threads_read_a_growing_prefix_beside_the_writer(tmp_path: Path) -> None:
    written = threading.Event()

    def read(store: SQLiteStore) -> list[int]:
        seen: list[int] = []
        while not written.is_set() or len(seen) < 2:
            positions = [effect.key.position for effect in store.journal("e1")]
            assert positions == list(range(len(positions)))
            seen.append(len(positions))
        return seen

    with SQLiteStore(tmp_path / "s.db", commit_seconds=0.001) as store:
        store.begin(make_head())
        store.flush_sync()
        with ThreadPoolExecutor(3) as pool:
            reading = [pool.submit(read, store) for _ in range(3)]
            for n in range(150):
                store.append("e1", [make_effect(n, turn=make_turn(n), kind="model")])
                store.flush_sync()
            written.set()
            for one in reading:
                assert one.result() == sorted(one.result())
        assert len(store.journal("e1")) == 150


def test_other_processes_see_what_was_flushed_while_the_writer_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", READER, str(tmp_path / "s.db")]
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
        store.flush_sync()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as one, subprocess.Popen(command, cwd=ROOT, **pipes) as two:
            for n in range(3):
                store.append("e1", [make_effect(n)])
                store.flush_sync()
                for reader in (one, two):
                    print("read", file=reader.stdin, flush=True)
                    assert reader.stdout.readline().split() == [str(n + 1), "1"]
            store.finish("e1", EpisodeTail("done"))
            store.flush_sync()
            print("read", file=one.stdin, flush=True)
            assert one.stdout.readline().split() == ["3", "0"]


def test_a_paused_reader_does_not_hold_the_log_back(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        for n in range(3):
            store.begin(make_head(f"e{n}"))
        store.flush_sync()
        with SQLiteStore(tmp_path / "s.db", read_only=True) as reader:
            paused = reader.episodes()
            next(paused)
            for n in range(40):
                store.append("e1", [make_effect(n, value=f"{n}" + "v" * 60_000)])
                store.append("e1", [make_effect(n, value=f"{n}" + "w" * 60_000)])
                store.flush_sync()
            assert store._writer is not None
            log = store.path.with_name("s.db-wal").stat().st_size
            assert log < 4_500_000, "4.8 MB were written, and the log was begun anew in between"
            assert len(list(paused)) == 2


def test_a_read_only_store_needs_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(make_head())
    (tmp_path / "s.db.lock").unlink()
    with SQLiteStore(tmp_path / "s.db", read_only=True) as store:
        with pytest.raises(UserError, match="read_only=True"):
            store.begin(make_head("e2"))
        assert [head.id for head in store.heads()] == ["e1"]
    assert not (tmp_path / "s.db.lock").exists()
