import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from agentrl.effect import Effect
from agentrl.episode import Column, Parent, Reward, Segment, Turn, Version
from agentrl.errors import StoreError, UserError
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail, StoredRow, StoredStep
from agentrl.store.schema import MIGRATIONS, VERSION
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn, same

# What tests/store/version_1.sql holds: written by a store of schema 1 and dumped.
HEADS: tuple[EpisodeHead, ...] = (
    make_head("old-1", source="teacher", split="train", step=3, fork_forced={"main:1": (4, 5)}),
    make_head("old-2", source="policy", split="eval", task={"long": "y" * 66_000}, fork_of="old-1", fork_cut=1),
)
TURNS: tuple[Turn, ...] = (
    make_turn(0, segments=(Segment("user", 0, 2),), columns={"entropy": Column("entropy", np.arange(3, dtype=np.float32))}),
    make_turn(1, ids=(70_000, 1), parent=Parent("main:0", 5), predecessor="main:0"),
)
JOURNAL: tuple[Effect, ...] = (
    make_effect(0, turn=TURNS[0], kind="model", costs={"usd": 0.5}),
    make_effect(1, turn=TURNS[1], kind="model"),
    make_effect(2, value={"page": [1, "Ω", None]}, status="intent", completed=-1),
)
TAIL = EpisodeTail("done", output="42", rewards=(Reward("exact", 1.0),), metrics={"turns": 2.0}, seconds=3.0)
LATER = Reward("merged", 1.0)
STEP = StoredStep(
    "solver", 3, (StoredRow("old-1", "main:1", ("main:0",), (struct.pack("<f", 1.0),)),), Version("run", "solver", 2, "d0")
)
BLOB = b"an old blob"


def build_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "version_1.sql").read_text())


def test_a_store_of_schema_1_is_brought_up_and_read_in_full(tmp_path: Path) -> None:
    build_version_1(tmp_path / "s.db")
    with pytest.raises(UserError, match="open it once for writing"), SQLiteStore(tmp_path / "s.db", read_only=True):
        pass
    with SQLiteStore(tmp_path / "s.db") as store:
        assert store.check() == ()
    with SQLiteStore(tmp_path / "s.db", read_only=True) as store:
        assert tuple(store.heads()) == HEADS
        assert [head.id for head in store.heads(EpisodeFilter(source="teacher"))] == ["old-1"]
        assert same(store.journal("old-1"), JOURNAL)
        assert same(store.journal("old-2"), JOURNAL[:0])
        tail = store.tail("old-1")
        assert tail is not None and tail.rewards == (*TAIL.rewards, LATER) and tail.output == "42"
        assert same(store.episode("old-1").turns, TURNS)
        assert store.counts() == {"running": 1, "done": 1}
        assert list(store.steps("solver")) == [STEP]
        (digest,) = (row[0] for row in store._reading().rows("SELECT digest FROM blob WHERE length(data) < 100"))
        assert store.blob(digest.hex()) == BLOB


def test_a_store_of_schema_1_can_be_gone_on_with(tmp_path: Path) -> None:
    build_version_1(tmp_path / "s.db")
    with SQLiteStore(tmp_path / "s.db") as store:
        store.begin(HEADS[1])
        store.append("old-2", [make_effect(5, turn=make_turn(5), kind="model")])
        store.begin(make_head("new"))
        store.commit_step(STEP)  # held already
        store.flush_sync()
        assert [head.id for head in store.heads()] == ["old-1", "old-2", "new"]
        assert [effect.key.position for effect in store.journal("old-2")] == [5]


def test_a_migration_that_fails_leaves_the_version_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sqlite3.Connection) -> None:
        MIGRATIONS[1](connection)
        connection.execute("SELECT no_such_function()")

    build_version_1(tmp_path / "s.db")
    with monkeypatch.context() as patched:
        patched.setattr("agentrl.store.schema.MIGRATIONS", (MIGRATIONS[0], broken))
        with pytest.raises(StoreError, match="no_such_function"), SQLiteStore(tmp_path / "s.db"):
            pass
    with SQLiteStore(tmp_path / "s.db") as store:
        assert tuple(store.heads()) == HEADS


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_schema_is_refused_and_untouched(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "s.db"
    with SQLiteStore(path):
        pass
    with closing(sqlite3.connect(path)) as shell, shell:
        shell.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (VERSION + 1,))
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"schema {VERSION + 1}.*up to {VERSION}"), SQLiteStore(path, read_only=read_only):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("content", [b"once upon a time " * 400, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_file_that_is_no_database_is_refused_and_untouched(tmp_path: Path, content: bytes, read_only: bool) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot open .*s\.db"), SQLiteStore(path, read_only=read_only):
        pass
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_of_another_program_is_refused_and_untouched(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "s.db"
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE music(title)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"no agentrl store \(it holds music"), SQLiteStore(path, read_only=read_only):
        pass
    assert path.read_bytes() == before


def test_a_missing_file_is_no_store_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no store at"), SQLiteStore(tmp_path / "s.db", read_only=True):
        pass


def fill(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.begin(make_head())
        store.append("e1", [make_effect(n, value="v" * 500) for n in range(400)])


def test_a_truncated_file_gives_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    fill(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 4096 * 4096])
    with pytest.raises(StoreError, match="damaged"), SQLiteStore(path, read_only=True) as store:
        store.journal("e1")


def test_zeroed_pages_give_a_store_error_and_check_names_them(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    fill(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    with SQLiteStore(path, read_only=True) as store:
        with pytest.raises(StoreError, match="damaged"):
            store.journal("e1")
        assert store.check()


def test_changed_bytes_of_a_blob_give_a_store_error(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with SQLiteStore(path) as store:
        digest = store.put_blob(b"the true bytes")
    path.write_bytes(path.read_bytes().replace(b"the true bytes", b"the other byte"))
    with SQLiteStore(path, read_only=True) as store, pytest.raises(StoreError, match="holds other bytes"):
        store.blob(digest)


def test_changed_json_gives_a_store_error_naming_the_episode(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with SQLiteStore(path) as store:
        store.begin(make_head(task={"question": "who?"}))
    path.write_bytes(path.read_bytes().replace(b'{"question":', b'{"question" '))
    with SQLiteStore(path, read_only=True) as store, pytest.raises(StoreError, match="damaged at the head of episode 'e1'"):
        list(store.heads())


def test_a_copy_on_a_read_only_folder_can_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "s.db")
    folder = tmp_path / "archive"
    folder.mkdir()
    shutil.copy(tmp_path / "s.db", folder / "s.db")
    folder.chmod(0o555)
    program = (
        "import os, sqlite3, sys; from pathlib import Path; from agentrl.store.connect import open_reader\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(open_reader(Path(sys.argv[1])).execute('SELECT count(*) FROM effect').fetchone()[0])"
    )
    for above in tmp_path.parents[:3]:  # so that a user with fewer rights can walk there
        above.chmod(0o755)
    tmp_path.chmod(0o755)
    try:
        command = [sys.executable, "-c", program, str(folder / "s.db")]
        read = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    finally:
        folder.chmod(0o755)
    assert read.stdout == "400\n", read.stderr
