"""What `benchmarks/credit.py` is measured on: turns of one shape, batches with all that an estimator may read, and trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from agentrl.credit import Batch, to_batch
from agentrl.episode import (
    Column,
    Episode,
    Group,
    IntArray,
    Parent,
    Probe,
    Reward,
    Sampling,
    Segment,
    State,
    Turn,
    Version,
    VersionSpan,
    digest_ids,
    token_ids,
)

CONTEXT, SAMPLED = 64, 48
CUTS = (5, 10, 15)
"""Turns that a leaf shares with the root of its tree; so a tree has 4 leaves."""
SAID = "The capital is named in the second document, so I search for it first: <search>capital of Burkina {}</search>"
VERSION = Version("benchmark", "searcher", 0, "0" * 16)


def make_turn(index: int, before: list[IntArray], rng: np.random.Generator) -> Turn:
    """A turn that goes on from the tokens `before`; its state is one of a few, so that turns of a group meet."""
    context, sampled = token_ids(rng.integers(0, 50_000, CONTEXT)), token_ids(rng.integers(0, 50_000, SAMPLED))
    before += (context, sampled)
    parent = f":{2 * index - 2}" if index else None
    return Turn(
        id=f":{2 * index}",
        agent="searcher",
        index=index,
        policy="searcher",
        versions=(VersionSpan(VERSION, 0, SAMPLED),),
        parent=Parent(parent, (CONTEXT + SAMPLED) * index) if parent else None,
        predecessor=parent,
        branch="",
        context_ids=context,
        sampled_ids=sampled,
        logprobs=-rng.exponential(1.0, SAMPLED).astype(np.float32),
        logprobs_at="after_mask",
        finish="stop",
        sampling=Sampling(max_tokens=256),
        seed=int(rng.integers(0, 1 << 62)),
        text=SAID.format(rng.integers(0, 20)),
        digest=digest_ids(*before),
        segments=(Segment("tool", 0, CONTEXT - 6), Segment("generation", CONTEXT - 6, CONTEXT)),
        tokenizer="qwen3",
        template="qwen3-tools",
        state=State(before=f"{index}-{rng.integers(0, 3)}" + "0" * 24),
        valid=bool(rng.random() < 0.95),
        started=float(index),
        ended=index + 0.5,
    )


def make_batch(groups: int, members: int, turns: int) -> Batch:
    """Independent episodes: states and actions that meet, a value and an answer's likelihood by turn, a reward at the end."""
    rng = np.random.default_rng(0)
    task = {"reference_rewards": [0.0, 0.5, 1.0]}
    return to_batch(
        [
            Group(f"g{g}", task, tuple(_episode(f"g{g}", m, _line(turns, (), rng), rng) for m in range(members)), members)
            for g in range(groups)
        ]
    )


def make_trees(groups: int, members: int, turns: int) -> Batch:
    """The same as leaves of trees: each root has forks that share its first turns."""
    rng = np.random.default_rng(0)
    made: list[Group] = []
    for g in range(groups):
        episodes: list[Episode] = []
        for member in range(members):
            place = member % (len(CUTS) + 1)
            root = episodes[member - place] if place else None
            kept = root.turns[: CUTS[place - 1]] if root is not None else ()
            leaf = _episode(f"g{g}", member, _line(turns, kept, rng), rng)
            episodes.append(replace(leaf, fork_of=root.id, fork_cut=len(kept)) if root is not None else leaf)
        made.append(Group(f"g{g}", None, tuple(episodes), members))
    return to_batch(made)


def _line(turns: int, kept: Sequence[Turn], rng: np.random.Generator) -> Iterator[Turn]:
    """The turns of an episode that begins with those `kept`."""
    yield from kept
    path: list[IntArray] = []
    for index in range(len(kept), turns):
        turn = make_turn(index, path[-2:], rng)
        states = tuple(f"{at}-{rng.integers(0, 3)}" + "0" * 24 for at in (index, index + 1))
        probes = tuple(Probe(name, 0, turn.sampled_ids, turn.logprobs, VERSION, rng.random()) for name in ("answer", "value"))
        yield replace(
            turn,
            state=State(before=states[0], after=states[1], action=f"search-{rng.integers(0, 4)}"),
            probes=probes,
            columns={"value": Column("value", rng.random(SAMPLED, np.float32))},
        )


def _episode(group: str, member: int, turns: Iterator[Turn], rng: np.random.Generator) -> Episode:
    reward = Reward("reward", float(rng.random() < 0.4))
    return Episode(f"{group}.{member}", group, None, 0, "0" * 16, "policy", "done", tuple(turns), rewards=(reward,))
