import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentrl.errors import StoreError
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head

ROOT = Path(__file__).parents[2]


def start_writer(path: Path, point: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.store.crash_writer", str(path), point, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def check_file(path: Path, acknowledged: int) -> None:
    """What was acknowledged is there, order is a prefix of what was queued, the file is sound and can be gone on with."""
    with SQLiteStore(path, read_only=True) as reader:  # before any writer has cleaned up
        seen = reader.journal("e")
    with SQLiteStore(path) as store:
        store.begin(make_head("e"))
        journal = store.journal("e")
        assert store.check() == ()
        assert [effect.key.position for effect in journal] == [effect.key.position for effect in seen]
        positions = [effect.key.position for effect in journal]
        assert positions == [n // 2 for n in range(len(positions))]
        assert len(positions) % 2 == 0, "an append was split over two commits"
        assert len(positions) // 2 > acknowledged
        assert all((effect.turn is None) == (effect.value is not None) for effect in journal)
        store.append("e", [make_effect(len(positions))])
        store.flush_sync()
        assert len(store.journal("e")) == len(journal) + 1


@pytest.mark.parametrize("point", ["store.before_commit", "store.mid_commit", "store.after_commit"])
@pytest.mark.parametrize("count", [2, 9])
def test_a_writer_killed_at_a_commit_loses_nothing_acknowledged(tmp_path: Path, point: str, count: int) -> None:
    with start_writer(tmp_path / "s.db", point, count) as writer:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == -9
    check_file(tmp_path / "s.db", max(map(int, output.split()), default=-1))


@pytest.mark.parametrize("seed", range(5))
def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    lines = random.Random(seed).randrange(1, 300)
    with start_writer(tmp_path / "s.db", "never", 0) as writer:
        assert writer.stdout is not None
        output = [writer.stdout.readline() for _ in range(lines)]
        threading.Event().wait(random.Random(seed).random() * 0.01)  # some way into the next commit
        writer.kill()
        output += writer.stdout.readlines()
    check_file(tmp_path / "s.db", max(int(line) for line in output if line.endswith("\n")))


@pytest.mark.parametrize(("point", "count", "cause"), [("full", 120, "SQLITE_FULL"), ("limit", 600_000, "SQLITE_")])
def test_a_full_disk_stops_the_store_with_one_clear_error_and_loses_nothing_acknowledged(
    tmp_path: Path, point: str, count: int, cause: str
) -> None:
    with start_writer(tmp_path / "s.db", point, count) as writer:
        output, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0
    *numbers, failure = output.splitlines()
    word, first, cause_name, *later = failure.split("\t")
    assert word == "failed"
    assert cause in first and str(tmp_path / "s.db") in first and "open the store again" in first
    assert cause_name in ("OperationalError", "DatabaseError")
    assert later == [first] * 4, "each later call raises the same error"
    check_file(tmp_path / "s.db", max(map(int, numbers)))


async def test_a_failed_commit_is_told_to_those_who_wait_and_at_the_end_of_the_block(tmp_path: Path) -> None:
    def fault(point: str) -> None:
        if point == "store.mid_commit" and armed:
            raise sqlite3.OperationalError("disk I/O error")

    armed: list[bool] = []
    with pytest.raises(StoreError, match="disk I/O error"), SQLiteStore(tmp_path / "s.db", fault=fault) as store:
        store.begin(make_head())
        await store.flush()
        armed.append(True)
        store.append("e1", [make_effect(0)])
        with pytest.raises(StoreError, match="disk I/O error") as caught:
            await store.flush()
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    with SQLiteStore(tmp_path / "s.db", read_only=True) as store:
        assert [head.id for head in store.heads()] == ["e1"]
        assert store.journal("e1") == ()


def test_a_bug_in_the_writer_wakes_those_who_wait(tmp_path: Path) -> None:
    seen: list[BaseException | None] = []
    hook, threading.excepthook = threading.excepthook, lambda args: seen.append(args.exc_value)
    try:

        def fault(point: str) -> None:
            raise AssertionError(point)

        with (
            pytest.raises(StoreError, match="stopped on an error of its own"),
            SQLiteStore(tmp_path / "s.db", fault=fault) as store,
        ):
            store.begin(make_head())
            store.flush_sync()
    finally:
        threading.excepthook = hook
    assert [type(error) for error in seen] == [AssertionError]
