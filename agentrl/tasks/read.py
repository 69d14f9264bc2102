"""Tasks from a JSONL file into the user's own frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from agentrl.errors import UserError, capture

TaskT = TypeVar("TaskT")


def read_tasks(kind: type[TaskT], path: str | Path) -> tuple[TaskT, ...]:
    """One task a line; `UserError` names the file, the line and what is wrong with it."""
    if not dataclasses.is_dataclass(kind):
        raise UserError(f"read_tasks needs a dataclass to read into, got {kind!r}")
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no task file {file}; give a JSONL file with one task a line")
    names = {field.name for field in dataclasses.fields(kind)}
    tasks: list[TaskT] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        data: Any = None
        with capture() as caught:
            data = json.loads(line)
        if caught.error is not None or not isinstance(data, dict):
            raise UserError(f"{file}:{number} is no JSON object: {line[:80]!r}")
        unknown = sorted(data.keys() - names)
        if unknown:
            known = ", ".join(sorted(names))
            raise UserError(f"{file}:{number} has {', '.join(unknown)}, which {kind.__name__} has not; it has {known}")
        with capture() as caught:
            tasks.append(make_task(kind, data))
        if caught.error is not None:
            raise UserError(f"{file}:{number} makes no {kind.__name__}: {caught.error}")
    if not tasks:
        raise UserError(f"{file} holds no task")
    return tuple(tasks)


def make_task(kind: type[TaskT], data: Mapping[str, Any]) -> TaskT:
    """A task of a frozen dataclass from JSON; lists become tuples."""
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
