"""Episodes to carry from store to file to store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from agentrl.effect import Effect
from agentrl.episode import (
    Candidate,
    Column,
    Episode,
    Failure,
    Parent,
    Probe,
    Reward,
    Sampling,
    Segment,
    State,
    ToolCall,
    Version,
    VersionSpan,
    token_ids,
)
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from tests.store import store_values as values
from tests.store.store_values import make_effect, make_head, make_turn

NAN = np.frombuffer(bytes.fromhex("0100807f0000c07f0000807f00000080"), np.float32)
"""A signalling nan, the usual one, infinity, minus zero."""


def told(draw: st.DrawFn, number: int, turn_ids: list[str]) -> Effect:
    """An effect as a journal holds it, of a kind that an episode is folded from."""
    kind = draw(st.sampled_from(["model", "lost", "tool", "reward", "score", "stop", "metric", "state", "other"]))
    about = draw(st.sampled_from(turn_ids) if turn_ids else st.none())
    costs = draw(values.costs)
    if kind in ("model", "lost"):
        turn = draw(values.turns)
        turn_ids.append(turn.id)
        return make_effect(number, kind="model", turn=turn, costs=costs, status="ok" if kind == "model" else "lost")
    if kind == "tool":
        call = draw(values.tool_calls)
        names = ("arguments", "status", "output", "started", "ended", "attempts", "truncated", "call_id", "data")
        return make_effect(
            number, {"turn": about} | {name: getattr(call, name) for name in names}, kind="tool", name=call.name, costs=costs
        )
    if kind == "reward":
        given = draw(values.rewards)
        value = {"name": given.name, "value": given.value, "turn": about, "agent": given.agent}
        return make_effect(number, value, kind="reward", name="reward")
    if kind == "score":
        ids = draw(st.lists(st.integers(0, 9), max_size=4))
        scored: dict[str, Any] = {"probe": "answer", "position": 3, "ids": ids, "logprobs": [-0.5] * len(ids)}
        return make_effect(number, {"turn": about, **scored, "version": None, "value": 0.25}, kind="score")
    if kind == "other":
        return make_effect(number, draw(values.json_values.filter(lambda value: not isinstance(value, dict))), costs=costs)
    said: dict[str, Any] = {
        "stop": {"agent": "solver", "reason": "answered"},
        "metric": {"name": draw(values.plain), "value": draw(values.floats)},
        "state": {"turn": about, "before": "a", "after": draw(values.texts), "action": "", "raw": ""},
    }[kind]
    return make_effect(number, said, kind="note", name=kind)


tails = st.builds(
    EpisodeTail,
    status=st.sampled_from(["done", "overlong", "failed", "cancelled", "over_budget"]),
    output=values.json_values,
    rewards=st.lists(st.builds(Reward, values.texts, values.floats, st.none(), st.none() | values.texts), max_size=2).map(
        tuple
    ),
    metrics=values.costs,
    failure=st.none() | st.builds(Failure, st.sampled_from(["tool", "engine"]), values.texts),
    seconds=values.numbers.map(lambda seconds: seconds + 0.0),
)


@st.composite
def journals(draw: st.DrawFn) -> tuple[EpisodeHead, list[Effect], EpisodeTail]:
    """An episode as it is stored."""
    turn_ids: list[str] = []
    effects = [told(draw, number, turn_ids) for number in range(draw(st.integers(0, 5)))]
    head = make_head(task=draw(values.json_values), split="eval", step=3, source="teacher", created=draw(values.numbers) + 0.0)
    return head, effects, draw(tails)


def store_one(path: Path, head: EpisodeHead, effects: list[Effect], tail: EpisodeTail | None) -> Episode:
    """Stores an episode; gives it as the store does."""
    with SQLiteStore(path) as store:
        store.begin(head)
        store.append(head.id, effects)
        if tail is not None:
            store.finish(head.id, tail)
        store.flush_sync()
        return store.episode(head.id)


def full_turn(**changes: Any) -> Any:
    """A turn with every field set to what is not its default, and nothing that a column could not hold."""
    version = Version("run", "solver", 3, "d1")
    fields: dict[str, Any] = {
        "versions": (VersionSpan(version, 0, 2), VersionSpan(Version("run", "solver", 4, "d2"), 2, 4, "recomputed")),
        "parent": Parent("main:0", 3),
        "predecessor": "main:0",
        "logprobs": NAN,
        "logprobs_at": "after_mask",
        "finish": "length",
        "sampling": Sampling(0.5, 3, 0.9, 17, (2, 3), ("\n\n",)),
        "digest": b"0123456789abcdef",
        "kind": "summary",
        "forced": 1,
        "segments": (Segment("user", 0, 1), Segment("tool", 1, 2)),
        "tokenizer": "t1",
        "template": "t2",
        "candidate": Candidate("set", 1, False),
        "tool_calls": (
            ToolCall("search", {"q": "Küche", "n": [1, {}]}, "timeout", "", 0.5, 1.25, 2, True, "c1", {"documents": []}),
            ToolCall("search", {}, "ok", "found\nit", 2.0, 2.5),
        ),
        "observation": "",
        "state": State("a", "b", "c", "d"),
        "rewards": (Reward("step", -0.0, "main:1", "solver"),),
        "probes": (
            Probe("gold", 2, token_ids((5, 70000)), NAN[:2], version, float("nan")),
            Probe("plain", 0, token_ids(()), NAN[:0]),
        ),
        "columns": {
            "entropy": Column("entropy", NAN),
            "kept": Column("kept", np.ones((2, 3), np.bool_), "context"),
            "big": Column("big", np.array([1.5, np.nan], ">f8")),
        },
        "media": ("0" * 64,),
        "valid": False,
        "started": 0.5,
        "ended": 1.5,
        "cached_tokens": 1,
        "costs": {"usd": 0.25},
        "untrained": "for a test",
    }
    return make_turn(1, (5, 6, 7, 8), **(fields | changes))
