"""Records to store: hypothesis strategies over every field, plain examples, and equality to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agentrl.effect import Effect, EffectKey, EffectKind, EffectStatus
from agentrl.episode import (
    Candidate,
    Column,
    Finish,
    Parent,
    Probe,
    Reward,
    Sampling,
    Segment,
    State,
    ToolCall,
    ToolStatus,
    Turn,
    Version,
    VersionSpan,
    token_ids,
)
from agentrl.store.contract import EpisodeHead


def same(left: Any, right: Any) -> bool:
    """Equality of every field to the bit; any nan of a plain float equals any other."""
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and (left.dtype, left.shape, left.tobytes()) == (
            right.dtype,
            right.shape,
            right.tobytes(),
        )
    if isinstance(left, Mapping):
        return isinstance(right, Mapping) and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if type(left) is not type(right):
        return False
    if is_dataclass(left):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return repr(left) == repr(right)


texts = st.text(st.characters(), max_size=12)  # half surrogate pairs and NUL included
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ints = st.integers(-(2**63), 2**63 - 1)
small = st.integers(0, 1000)
floats = st.floats()
numbers = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_maps = st.dictionaries(texts, json_values, max_size=2)
costs = st.dictionaries(texts, floats, max_size=2)


@st.composite
def id_arrays(draw: st.DrawFn) -> Any:
    top = draw(st.sampled_from([2**16 - 1, 2**24 - 1, 2**31 - 1]))
    low = draw(st.sampled_from([0, -(2**31)])) if top == 2**31 - 1 else 0
    return token_ids(draw(st.lists(st.integers(low, top), max_size=9)))


@st.composite
def float_arrays(draw: st.DrawFn) -> Any:
    """Any bits: infinities, denormals, nan of any payload."""
    return np.frombuffer(draw(st.binary(max_size=40).filter(lambda data: len(data) % 4 == 0)), np.float32)


column_values = hnp.arrays(
    dtype=hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes()
    | hnp.unicode_string_dtypes(max_len=3)
    | hnp.byte_string_dtypes(max_len=3)
    | hnp.datetime64_dtypes(),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
versions = st.builds(Version, texts, texts, st.integers(-5, 10**6), texts)
samplings = st.builds(
    Sampling,
    numbers,
    st.integers(0, 100),
    numbers,
    small,
    st.lists(small, max_size=2).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
)
rewards = st.builds(Reward, texts, floats, st.none() | texts, st.none() | texts)
tool_calls = st.builds(
    ToolCall,
    texts,
    json_maps,
    st.sampled_from(get_args(ToolStatus)),
    texts,
    floats,
    floats,
    small,
    st.booleans(),
    texts,
    json_maps,
)
probes = st.builds(Probe, texts, ints, id_arrays(), float_arrays(), st.none() | versions, st.none() | floats)
columns = st.dictionaries(texts, st.builds(Column, texts, column_values, st.sampled_from(["sampled", "context"])), max_size=2)
turns = st.builds(
    Turn,
    id=texts,
    agent=texts,
    index=small,
    policy=texts,
    versions=st.lists(st.builds(VersionSpan, versions, small, small, st.sampled_from(["kept", "recomputed"])), max_size=2).map(
        tuple
    ),
    parent=st.none() | st.builds(Parent, texts, small),
    predecessor=st.none() | texts,
    branch=texts,
    context_ids=id_arrays(),
    sampled_ids=id_arrays(),
    logprobs=float_arrays(),
    logprobs_at=st.sampled_from(["before_mask", "after_mask"]),
    finish=st.sampled_from(get_args(Finish)),
    sampling=samplings,
    seed=st.integers(),
    text=texts,
    digest=st.binary(max_size=16),
    kind=st.sampled_from(["act", "summary"]),
    forced=small,
    segments=st.lists(st.builds(Segment, texts, small, small), max_size=2).map(tuple),
    tokenizer=texts,
    template=texts,
    candidate=st.none() | st.builds(Candidate, texts, small, st.booleans()),
    tool_calls=st.lists(tool_calls, max_size=2).map(tuple),
    observation=st.none() | texts,
    state=st.none() | st.builds(State, texts, texts, texts, texts),
    rewards=st.lists(rewards, max_size=2).map(tuple),
    probes=st.lists(probes, max_size=2).map(tuple),
    columns=columns,
    media=st.lists(texts, max_size=2).map(tuple),
    valid=st.booleans(),
    started=floats,
    ended=floats,
    cached_tokens=small,
    costs=costs,
    untrained=texts,
)
effects = st.builds(
    Effect,
    key=st.builds(EffectKey, texts, st.integers(0, 3), small),
    kind=st.sampled_from(get_args(EffectKind)),
    name=texts,
    request=st.binary(min_size=16, max_size=16),
    note=texts,
    issued=ints,
    completed=ints,
    at=floats.map(lambda at: at + 0.0),  # SQLite keeps no sign of zero
    status=st.sampled_from(get_args(EffectStatus)),
    value=json_values,
    turn=st.none() | turns,
    blobs=st.lists(st.just("0" * 64), max_size=2).map(tuple),
    costs=costs,
)


def make_head(name: str = "e1", **changes: Any) -> EpisodeHead:
    values: dict[str, Any] = {
        "id": name,
        "group": "g1",
        "member": 0,
        "wanted": 2,
        "task": {"q": "why?"},
        "seed": 7,
        "workflow": "ab" * 16,
        "created": 1.5,
    }
    return EpisodeHead(**values | changes)


def make_effect(position: int, value: Any = None, **changes: Any) -> Effect:
    values: dict[str, Any] = {
        "key": EffectKey("main", 0, position),
        "kind": "effect",
        "name": "draw",
        "request": position.to_bytes(16, "little"),
        "note": "a draw",
        "issued": 2 * position,
        "completed": 2 * position + 1,
        "at": 0.25 * position,
        "value": value,
    }
    return Effect(**values | changes)


def make_turn(position: int, ids: Any = (5, 6, 7), **changes: Any) -> Turn:
    name = str(EffectKey("main", 0, position))
    values: dict[str, Any] = {
        "id": name,
        "agent": "solver",
        "index": position,
        "policy": "solver",
        "versions": (VersionSpan(Version("run", "solver", 3, "d1"), 0, len(ids)),),
        "parent": None,
        "predecessor": None,
        "branch": "main",
        "context_ids": token_ids((1, 2)),
        "sampled_ids": token_ids(ids),
        "logprobs": -np.ones(len(ids), np.float32),
        "logprobs_at": "before_mask",
        "finish": "stop",
        "sampling": Sampling(stop_ids=(2,)),
        "seed": 11,
        "text": "hello",
    }
    return Turn(**values | changes)
