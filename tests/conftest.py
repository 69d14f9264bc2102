"""For every test: each turn that any run stored must read back as the tokens that its engine saw; and Ctrl-C is heard."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentrl.episode import digest_ids
from agentrl.errors import StoreError, UserError, capture
from agentrl.store.sqlite import SQLiteStore

OWN_TURNS = ("tests/store", "tests/benchmarks")
"""Tests that store turns which no engine sampled."""
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's `make test &`; what the tests start would be deaf to it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def stored_paths_are_what_engines_saw(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reads back, after the test, all episodes of the stores it wrote to, and compares digests."""
    if request.node.nodeid.startswith(OWN_TURNS) or request.node.get_closest_marker("drifts"):
        yield
        return
    written: set[Path] = set()
    entered = SQLiteStore.__enter__

    def enter(store: SQLiteStore) -> Any:
        written.add(Path(store.path))
        return entered(store)

    monkeypatch.setattr(SQLiteStore, "__enter__", enter)
    yield
    monkeypatch.undo()
    for path in sorted(written):
        found: list[str] = []
        with capture() as caught:
            found = drifted(path) if path.exists() else []
        if caught.error is not None and not isinstance(caught.error, StoreError | UserError):  # such a store is damaged
            raise caught.error
        assert found == []


def drifted(path: Path) -> list[str]:
    """The turns of a store whose path is not what their engine saw."""
    found: list[str] = []
    with SQLiteStore(path, read_only=True) as store:
        for episode in store.episodes():
            found += [
                f"{episode.id} {turn.id}"
                for turn in episode.turns
                if turn.digest and digest_ids(episode.path(turn)) != turn.digest
            ]
    return found
