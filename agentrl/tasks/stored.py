"""Tasks of a store, of episodes that were served or sampled before, as tasks to train on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentrl.episode import Episode, Status
from agentrl.errors import UserError, capture
from agentrl.store.contract import EpisodeFilter, EpisodeHead
from agentrl.tasks.contract import TaskT
from agentrl.tasks.read import make_task


def from_store(
    path: str | Path,
    kind: type[TaskT],
    *,
    split: str | None = None,
    status: Status | tuple[Status, ...] | None = None,
    where: Callable[[Episode], bool] | None = None,
    unique: bool = True,
    limit: int | None = None,
    newest: bool = False,
) -> tuple[TaskT, ...]:
    """The tasks of a run folder or store file, in the order in which their episodes began; with `newest` the last one first.

    `split`, `status` and `where` choose episodes (`where` sees each whole, with the rewards that came later). A task that
    several episodes share is given once unless `unique=False`; at most `limit` are given. The store is only read, so another
    process may be writing it. `UserError` if there is no store, no such episode, or a task that `kind` has no fields for.
    """
    from agentrl.store.sqlite import SQLiteStore  # late: `agentrl.workflow` needs this package, and no store

    given: Any = kind
    if not (isinstance(given, type) and dataclasses.is_dataclass(given)):
        raise UserError(f"from_store needs the dataclass of the tasks, got {kind!r}")
    if limit is not None and limit < 1:
        raise UserError(f"from_store needs limit >= 1, or None for all tasks, got {limit}")
    folder = Path(path)
    asked = EpisodeFilter(split=split, status=(status,) if isinstance(status, str) else status)
    found: list[TaskT] = []
    seen: set[str] = set()
    with SQLiteStore(folder / "store.db" if folder.is_dir() else folder, read_only=True) as store:
        for head in _ordered(store.heads(asked), newest):
            said = json.dumps(head.task, sort_keys=True)
            if (unique and said in seen) or (where is not None and not where(store.episode(head.id))):
                continue
            seen.add(said)
            found.append(_task(kind, head))
            if len(found) == limit:
                break
        if not found:
            splits = ", ".join(sorted({head.split for head in store.heads()})) or "none"
            raise UserError(f"{folder} has no such episode to take a task from; its splits are {splits}; ask for less")
    return tuple(found)


def _ordered(heads: Iterator[EpisodeHead], newest: bool) -> Iterator[EpisodeHead]:
    return reversed(list(heads)) if newest else heads


def _task(kind: type[TaskT], head: EpisodeHead) -> TaskT:
    fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    has = ", ".join(field.name for field in fields)
    cure = f"{kind.__name__} has {has}; give the dataclass it was made of, or leave such episodes out with split= or where="
    task: Any = head.task
    if not isinstance(task, dict):
        raise UserError(f"the task of episode {head.id} is no {kind.__name__} but {json.dumps(task)[:60]}; {cure}")
    unknown = sorted(task.keys() - {field.name for field in fields})
    if unknown:
        raise UserError(f"the task of episode {head.id} has {', '.join(unknown)}, which {kind.__name__} has not; {cure}")
    with capture() as caught:
        return make_task(kind, task)
    raise UserError(f"the task of episode {head.id} makes no {kind.__name__}: {caught.error}; {cure}")
