import os
import socket
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from agentrl.errors import LeaseLost, RunLocked, StoreError
from agentrl.store.contract import EpisodeTail
from agentrl.store.owner import Owner, is_live, process_start
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


@contextmanager
def other_process() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(["sleep", "60"], text=True) as process:
        yield process
        process.kill()


def set_owner(path: Path, owner: Owner, expires: float, episode: str = "e1") -> None:
    """As if `owner` had begun the episode."""
    with closing(sqlite3.connect(path, timeout=30)) as shell, shell:
        shell.execute("BEGIN IMMEDIATE")
        shell.execute("INSERT INTO writer VALUES(?, ?, ?, ?, ?)", (owner.token, owner.host, owner.pid, owner.started, expires))
        shell.execute("INSERT OR REPLACE INTO lease SELECT seq, ? FROM episode WHERE id = ?", (owner.token, episode))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one unfinished episode."""
    path = tmp_path / "s.db"
    with SQLiteStore(path) as store:
        store.begin(make_head())
        store.append("e1", [make_effect(0)])
    return path


def test_a_second_writing_process_is_refused_naming_the_first(path: Path) -> None:
    program = f"from agentrl.store.sqlite import SQLiteStore\nwith SQLiteStore({str(path)!r}): print('in')"
    command = [sys.executable, "-c", program]
    with SQLiteStore(path):
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "RunLocked" in refused.stderr and f"held by pid {os.getpid()} on {HOST}" in refused.stderr
    admitted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert admitted.stdout == "in\n", admitted.stderr


def test_a_second_writer_in_the_same_process_is_refused_and_does_not_free_the_lock(path: Path) -> None:
    program = f"from agentrl.store.sqlite import SQLiteStore\nwith SQLiteStore({str(path)!r}): print('in')"
    with SQLiteStore(path):
        with pytest.raises(RunLocked, match="this process"), SQLiteStore(path):
            pass
        refused = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "RunLocked" in refused.stderr


def test_an_episode_of_a_live_process_of_this_host_is_not_taken_even_when_its_lease_expired(path: Path) -> None:
    with other_process() as process:
        set_owner(path, Owner("t", HOST, process.pid, process_start(process.pid) or ""), expires=0.0)
        with SQLiteStore(path) as store, pytest.raises(LeaseLost, match=f"pid {process.pid} on {HOST}"):
            store.begin(make_head())


def test_an_episode_of_a_dead_process_is_taken_over_at_once(path: Path) -> None:
    with other_process() as process:
        owner = Owner("t", HOST, process.pid, process_start(process.pid) or "")
    set_owner(path, owner, expires=time.time() + 1000)
    with SQLiteStore(path) as store:
        store.begin(make_head())
        store.append("e1", [make_effect(1)])
        store.flush_sync()
        assert [effect.key.position for effect in store.journal("e1")] == [0, 1]


def test_a_pid_that_now_belongs_to_a_later_process_counts_as_dead(path: Path) -> None:
    with other_process() as process:
        set_owner(path, Owner("t", HOST, process.pid, "another start"), expires=time.time() + 1000)
        with SQLiteStore(path) as store:
            store.begin(make_head())


def test_a_zombie_counts_as_dead() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended and not reaped
    assert process_start(process.pid) is None
    process.wait()


@pytest.mark.parametrize(("expires_in", "live"), [(1000.0, True), (-1.0, False)])
def test_on_another_host_only_the_expiry_counts(path: Path, expires_in: float, live: bool) -> None:
    owner = Owner("t", "another-host", 1, "x")
    assert is_live(owner, time.time() + expires_in) == live
    set_owner(path, owner, expires=time.time() + expires_in)
    with SQLiteStore(path) as store:
        if live:
            with pytest.raises(LeaseLost, match="pid 1 on another-host"):
                store.begin(make_head())
        else:
            store.begin(make_head())


def test_the_writer_renews_its_lease(path: Path) -> None:
    renewed = 0

    def fault(point: str) -> None:
        nonlocal renewed
        renewed += point == "store.after_commit"

    with SQLiteStore(path, lease_seconds=0.03, fault=fault) as store:
        (first,) = store._reading().rows("SELECT expires FROM writer") or [(0.0,)]
        deadline = time.monotonic() + 20
        while renewed < 3 and time.monotonic() < deadline:
            pass
        assert store._reading().rows("SELECT expires FROM writer")[0] > first


async def test_a_writer_whose_episode_was_taken_stops_writing_it_and_says_so(path: Path) -> None:
    asleep: list[bool] = []

    def fault(point: str) -> None:
        if point == "store.before_commit" and asleep:  # as if the process had slept past its expiry right here
            asleep.clear()
            assert store._writer is not None
            store._writer._renew_at = 0.0
            set_owner(path, Owner("thief", "another-host", 1, "x"), expires=time.time() + 1000)

    with SQLiteStore(path, fault=fault) as store:
        store.begin(make_head())
        store.begin(make_head("e2"))
        await store.flush()
        asleep.append(True)
        store.append("e1", [make_effect(1)])
        with pytest.raises(LeaseLost, match=r"'e1' has another writer.*not written"):
            await store.flush()
        with pytest.raises(LeaseLost, match="'e1' has another writer"):
            store.append("e1", [make_effect(1)])
        store.append("e2", [make_effect(0)])
        await store.flush()
        assert len(store.journal("e2")) == 1
    with SQLiteStore(path, read_only=True) as store:
        assert [effect.key.position for effect in store.journal("e1")] == [0]
        assert store._reading().rows("SELECT writer FROM lease") == [("thief",)]


def test_leases_are_given_up_at_the_end(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.begin(make_head())
        store.begin(make_head("e2"))
        store.flush_sync()
        assert store._reading().rows("SELECT count(*) FROM lease") == [(2,)]
        store.finish("e2", EpisodeTail("done"))
        store.flush_sync()
        assert store._reading().rows("SELECT count(*) FROM lease") == [(1,)]
    with SQLiteStore(path, read_only=True) as store:
        assert store._reading().rows("SELECT count(*) FROM lease") == [(0,)]
        assert store._reading().rows("SELECT count(*) FROM writer") == [(0,)]


def test_a_fork_of_the_writing_process_is_told_to_open_its_own(path: Path) -> None:
    with SQLiteStore(path) as store:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python warns of a fork beside threads, which is the point here
            pid = os.fork()
        if pid == 0:
            refused = 0
            for call in (lambda: store.begin(make_head("e2")), lambda: store.journal("e1"), store.flush_sync):
                try:
                    call()
                except StoreError as error:
                    refused += "is a fork of it" in str(error)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
