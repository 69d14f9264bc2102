"""What a person writes a workflow against: `@workflow` and the world it runs in.

A workflow is `async (task, team) -> output`. The team is its only handle on the world: its agents, its effects, its rewards.
The data decides, never a mode flag: the same function trains, is evaluated, is served and is replayed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import textwrap
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_type_hints

from agentrl.effect import EffectKind, derive_seed
from agentrl.episode import EMPTY_MAP, Turn
from agentrl.errors import UserError, capture
from agentrl.tasks.read import make_task

if TYPE_CHECKING:
    from agentrl.agent import Agent, Team

TaskT = TypeVar("TaskT")
OutputT = TypeVar("OutputT")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an effect came to: a turn, or a JSON value; `costs` are paid whether or not anybody waits for it."""

    value: Any = None
    turn: Turn | None = None
    costs: Mapping[str, float] = EMPTY_MAP
    blobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """Where and when an effect was asked for: what `run` may use to make seeds, ids and times."""

    episode: str
    branch: str
    position: int
    episode_seed: int
    issued_at: float
    clock: Callable[[], float]
    forced: tuple[int, ...] = ()
    """Token ids that a fork forces on this model call."""
    resumed: bool = False
    """An intent without a result stands in the record: it may have happened already."""
    attempt: int = 0

    @property
    def seed(self) -> int:
        """Derived from the episode or fork, the branch and the position."""
        return derive_seed(self.episode_seed, self.branch, self.position)

    @property
    def id(self) -> str:
        """The effect's key as text; the id of the turn that a model call makes."""
        return f"{self.branch}:{self.position}"

    @property
    def idempotency_key(self) -> str:
        """The same for every try of this effect, in every process."""
        return f"{self.episode}|{self.branch}:{self.position}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked of the world."""

    kind: EffectKind
    name: str
    request: bytes
    """Digest of what is asked; a replay that asks something else diverges."""
    note: str
    """The same in a few words."""
    run: Callable[[Asked], Awaitable[Outcome]]
    abandon: Callable[[Asked], Awaitable[None]] | None = None
    """How to end it early and still learn what was paid; None = cancel its task."""
    outlives: bool = False
    idempotent: bool = True
    retries: int = 0


class World(Protocol):
    """What the runtime gives a team. Everything passes through the episode's journal."""

    @property
    def episode(self) -> str: ...

    async def perform(self, ask: Ask) -> Outcome:
        """Runs an effect, or hands back what the record holds of it. Raises what it raised."""
        ...

    def record(self, kind: EffectKind, name: str, value: Any) -> Any:
        """Writes a JSON value into the journal at once; gives what the journal holds, which an edit may have changed."""
        ...

    def seed(self, *parts: str | int) -> int:
        """A seed of this place in the workflow; a fork's differ from its parent's."""
        ...

    def now(self) -> float:
        """Seconds since the episode began: when the last result came."""
        ...


@dataclass(frozen=True)
class Workflow(Generic[TaskT, OutputT]):
    """A workflow function with the agents of its team. Call it in a test, or give it to an `Experiment`."""

    function: Callable[[TaskT, Team], Coroutine[Any, Any, OutputT]]
    agents: Mapping[str, Agent]
    name: str
    code_hash: str = field(default="", compare=False)

    async def __call__(self, task: TaskT, team: Team) -> OutputT:
        return await self.function(task, team)


def workflow(
    *agents: Agent, name: str = ""
) -> Callable[[Callable[[TaskT, Team], Coroutine[Any, Any, OutputT]]], Workflow[TaskT, OutputT]]:
    """Makes a workflow of `async (task, team) -> output`; the agents are its team's roles."""
    by_name: dict[str, Agent] = {}
    for agent in agents:
        if agent.name in by_name:
            raise UserError(f"two agents are called {agent.name!r}; a role is one name everywhere")
        by_name[agent.name] = agent

    def wrap(function: Callable[[TaskT, Team], Coroutine[Any, Any, OutputT]]) -> Workflow[TaskT, OutputT]:
        called = name or function.__name__
        if not inspect.iscoroutinefunction(function):
            raise UserError(f"workflow {called} must be `async def {called}(task, team)`, got {function!r}")
        if len(inspect.signature(function).parameters) != 2:
            raise UserError(f"workflow {called} takes (task, team), got {inspect.signature(function)}")
        return Workflow(function, by_name, called, _code_hash(function))

    return wrap


def _code_hash(function: Callable[..., Any]) -> str:
    """16 hex digits over the function's source; a changed workflow is told from the one that was recorded."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        source = repr(function.__code__.co_code)
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def task_as_json(task: Any) -> Any:
    """A task as it is stored: JSON of a dataclass, or JSON itself."""
    value: Any = dataclasses.asdict(task) if dataclasses.is_dataclass(task) and not isinstance(task, type) else task
    with capture() as caught:
        return json.loads(json.dumps(value))
    raise UserError(f"a task must be JSON or a dataclass of JSON, got {type(task).__name__}: {caught.error}")


def task_from_json(made_for: Workflow[Any, Any], value: Any) -> Any:
    """The inverse of `task_as_json`: the class is the annotation of the workflow's first parameter."""
    first = next(iter(inspect.signature(made_for.function).parameters))
    with capture():
        kind = get_type_hints(made_for.function).get(first)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
            return make_task(kind, value)
    return value
