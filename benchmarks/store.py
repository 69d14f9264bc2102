"""Turns a second into the store, how long a commit takes, and bytes a token; beside it what SQLite and the disk alone give.

    python benchmarks/store.py [--turns 40000] [--folder DIR]

A turn has 32 context and 32 sampled tokens with log-probs, segments, parent, text, digest, seed and times. 32 episodes are
written round robin, one turn an `append`, with an awaited `flush` every 320 turns. The floors write as many bytes in as many
durable groups: `executemany` of blobs into a bare table (WAL, synchronous=FULL), and write + fsync of a plain file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.episode import Parent, Sampling, Segment, Turn, Version, VersionSpan, digest_ids, token_ids
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore

EPISODES = 32
CONTEXT = SAMPLED = 32
BATCH = 320
TEXT = (
    "The capital of the country is named in the second document, so I search for it first: <search>capital of Burkina</search>"
)


@dataclass(frozen=True)
class Measured:
    """One row of the table."""

    name: str
    wall: float
    cpu: float
    bytes: int
    commits_ms: tuple[float, ...] = ()
    flushes_ms: tuple[float, ...] = ()


def make_effects(turns: int, vocabulary: int) -> list[tuple[str, Effect]]:
    """(episode, effect) in the order in which they are appended."""
    rng = np.random.default_rng(0)
    versions = [Version("run-20260101", "searcher", step, f"{step:016x}") for step in range(8)]
    made: list[tuple[str, Effect]] = []
    for n in range(turns):
        episode, index = n % EPISODES, n // EPISODES
        name = f"searcher:{index}"
        parent = f"searcher:{index - 1}" if index else None
        context = token_ids(rng.integers(0, vocabulary, CONTEXT))
        sampled = token_ids(rng.integers(0, vocabulary, SAMPLED))
        turn = Turn(
            id=name,
            agent="searcher",
            index=index,
            policy="searcher",
            versions=(VersionSpan(versions[n * 8 // turns], 0, SAMPLED),),
            parent=Parent(parent, 64 * index) if parent else None,
            predecessor=parent,
            branch="searcher",
            context_ids=context,
            sampled_ids=sampled,
            logprobs=-rng.exponential(1.0, SAMPLED).astype(np.float32),
            logprobs_at="before_mask",
            finish="stop",
            sampling=Sampling(temperature=0.8, max_tokens=512, stop_ids=(2, 151645)),
            seed=int(rng.integers(0, 1 << 62)),
            text=TEXT,
            digest=digest_ids(context, sampled),
            segments=(Segment("tool", 0, 26), Segment("assistant", 26, CONTEXT)),
            tokenizer="qwen3",
            template="qwen3-tools",
            started=float(rng.uniform(0, 100)),
            ended=float(rng.uniform(100, 200)),
            cached_tokens=64 * index,
        )
        effect = Effect(
            key=EffectKey("searcher", 0, index),
            kind="model",
            name="searcher",
            request=digest_request(n),
            note="64 tokens at searcher",
            issued=2 * index,
            completed=2 * index + 1,
            at=turn.ended,
            turn=turn,
        )
        made.append((f"episode-{episode:04d}", effect))
    return made


async def write_store(path: Path, effects: list[tuple[str, Effect]], name: str) -> Measured:
    """The store itself. A commit's time runs from before its first insert to after its COMMIT."""
    commits: list[float] = []
    flushes: list[float] = []
    began = 0.0

    def watch(point: str) -> None:
        nonlocal began
        if point == "store.before_commit":
            began = time.perf_counter()
        elif point == "store.after_commit":
            commits.append((time.perf_counter() - began) * 1e3)

    with SQLiteStore(path, fault=watch) as store:
        await store.flush()
        wall, cpu = time.perf_counter(), time.process_time()
        for n in range(EPISODES):
            store.begin(EpisodeHead(f"episode-{n:04d}", f"group-{n // 8}", n % 8, 8, {"question": TEXT}, n, "0" * 64))
        for n, (episode, effect) in enumerate(effects, 1):
            store.append(episode, (effect,))
            if n % BATCH == 0:
                asked = time.perf_counter()
                await store.flush()
                flushes.append((time.perf_counter() - asked) * 1e3)
        for n in range(EPISODES):
            store.finish(f"episode-{n:04d}", EpisodeTail("done", "Ouagadougou"))
        await store.flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(name, wall, cpu, os.path.getsize(path), tuple(commits), tuple(flushes))  # noqa: ASYNC240 - nothing else runs


def write_bare_sqlite(path: Path, size: int, turns: int) -> Measured:
    """Blobs of the same size into a table with nothing else, a durable commit for each group."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE plain(seq INTEGER PRIMARY KEY, data BLOB)")
    rows = [(bytes(os.urandom(size)),) for _ in range(BATCH)]
    commits: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(turns // BATCH):
        began = time.perf_counter()
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO plain(data) VALUES(?)", rows)
        connection.execute("COMMIT")
        commits.append((time.perf_counter() - began) * 1e3)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    connection.close()
    return Measured("bare SQLite executemany", wall, cpu, path.stat().st_size, tuple(commits))


def write_bare_file(path: Path, size: int, turns: int) -> Measured:
    """The same bytes by write and fsync."""
    group = os.urandom(size * BATCH)
    commits: list[float] = []
    with path.open("wb", buffering=0) as file:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(turns // BATCH):
            began = time.perf_counter()
            file.write(group)
            os.fsync(file.fileno())
            commits.append((time.perf_counter() - began) * 1e3)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured("file write + fsync", wall, cpu, path.stat().st_size, tuple(commits))


def quantile(values: tuple[float, ...], q: float) -> str:
    return f"{np.quantile(values, q):.1f}" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    turns = arguments.turns // BATCH * BATCH
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        effects = make_effects(turns, 50_000)
        store = asyncio.run(write_store(folder / "store.db", effects, "store, ids of 2 bytes"))
        with sqlite3.connect(folder / "store.db") as connection:
            (packed,) = connection.execute("SELECT sum(length(tokens)) - 16 * count(*) FROM effect").fetchone()
        connection.close()
        wide = asyncio.run(write_store(folder / "wide.db", make_effects(turns, 151_936), "store, ids of 3 bytes"))
        size = store.bytes // turns
        rows = [store, wide, write_bare_sqlite(folder / "bare.db", size, turns), write_bare_file(folder / "bare", size, turns)]
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{turns} turns of {CONTEXT} + {SAMPLED} tokens; {size} bytes a turn on disk; flush every {BATCH}; {load}")
    heads = f"{'turns/s':>9}{'x wall':>8}{'CPU s':>7}{'us/turn':>8}{'x CPU':>7}{'commit ms p50':>15}{'p99':>6}{'max':>6}"
    print(f"{'':26}{heads}{'flush p99':>10}{'max':>6}")
    for row in rows:
        print(
            f"{row.name:26}{turns / row.wall:9.0f}{row.wall / store.wall:8.2f}{row.cpu:7.2f}{row.cpu / turns * 1e6:8.1f}"
            f"{row.cpu / store.cpu:7.2f}{quantile(row.commits_ms, 0.5):>15}{quantile(row.commits_ms, 0.99):>6}"
            f"{quantile(row.commits_ms, 1):>6}{quantile(row.flushes_ms, 0.99):>10}{quantile(row.flushes_ms, 1):>6}"
        )
    tokens = turns * (CONTEXT + SAMPLED)
    print(f"bytes a token: {packed / tokens:.2f} in the token columns, {store.bytes / tokens:.2f} on disk with metadata")


if __name__ == "__main__":
    main()
