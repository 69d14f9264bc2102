"""What a task says of itself under a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def of_task(task: Any, name: str) -> Any:
    """The task's key or field of that name; None if it has none."""
    if isinstance(task, Mapping):
        return cast("Mapping[str, Any]", task).get(name)
    return getattr(task, name, None)
