"""An experiment told as JSON, so that a run says what it was, and resuming with another one is noticed.

A dataclass is {"type": "module:Class", its fields}; a function or class is "module:qualname"; a path is its text; tasks are
their number and a digest of their content. An object of another kind is its type and its public plain attributes: what it
keeps to itself is not told.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from agentrl.errors import capture
from agentrl.resolve import name_of

if TYPE_CHECKING:
    from agentrl.experiment import Experiment

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
_LONG = 64
"""A longer sequence is told by number and digest."""


def experiment_json(experiment: Experiment[Any, Any]) -> dict[str, Any]:
    """All of it as JSON; equal experiments give equal JSON in every process."""
    told: dict[str, Any] = {"type": name_of(type(experiment))}
    for field in dataclasses.fields(experiment):
        value = getattr(experiment, field.name)
        is_tasks = field.name in ("tasks", "held_out") and isinstance(value, Sequence)
        told[field.name] = _counted(value) if is_tasks else _told(value)
    return told


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lines `path: in a -> in b` for what differs between two `experiment_json`; a changed type stands for its fields."""
    return list(_differences(a, b, ""))


def _told(value: Any) -> JSON:
    if isinstance(value, enum.Enum):
        return f"{name_of(type(value))}.{value.name}"
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _told(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": name_of(type(value)), **fields}
    if isinstance(value, bytes):
        return f"{len(value)} bytes {_digest(value)}"
    if isinstance(value, np.generic | np.ndarray):
        return _told(value.item()) if value.ndim == 0 else f"{value.dtype}{list(value.shape)} {_digest(value.tobytes())}"
    if isinstance(value, Sequence):
        return [_told(item) for item in value] if len(value) <= _LONG else _counted(value)
    if isinstance(value, set | frozenset):
        return sorted((_told(item) for item in value), key=str)
    if isinstance(value, functools.partial):
        return {
            "type": "functools:partial",
            "function": _told(value.func),
            "args": _told(value.args),
            "kwargs": _told(value.keywords),
        }
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return name_of(value)
    return _object(value)


def _object(value: Any) -> dict[str, JSON]:
    """Type and public plain attributes; never a repr, which may hold an address."""
    attributes = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    plain = {name: _told(item) for name, item in attributes.items() if isinstance(item, bool | int | float | str | Path)}
    return {"type": name_of(type(value)), **plain}


def _counted(values: Sequence[Any]) -> dict[str, JSON]:
    from agentrl.workflow import task_as_json

    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        told: Any = None
        with capture() as caught:
            told = task_as_json(value)
        if caught.error is not None:  # no task: told as any other value
            told = _told(value)
        digest.update(json.dumps(told, sort_keys=True).encode())
        digest.update(b"\0")
    return {"count": len(values), "digest": digest.hexdigest()}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _differences(a: Any, b: Any, path: str) -> Iterator[str]:
    if a == b and type(a) is type(b):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if "type" in a and "type" in b and a["type"] != b["type"]:
            yield f"{path or 'type'}: {a['type']} -> {b['type']}"
            return
        for name in dict.fromkeys((*a, *b)):
            inner = f"{path}.{name}" if path else str(name)
            if name not in a and b[name] in (None, "", [], {}):
                continue  # a field that a record of an older version lacks, and that says nothing
            if name not in a or name not in b:
                yield f"{inner}: {_short(a[name]) if name in a else 'absent'} -> {_short(b[name]) if name in b else 'absent'}"
            else:
                yield from _differences(a[name], b[name], inner)
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield f"{path}: {_short(a)} -> {_short(b)}"


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and "type" in value:
        return str(value["type"])
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
