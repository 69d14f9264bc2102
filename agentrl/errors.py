"""The error tree, and `boundary`: whose fault a failure is.

    AgentRLError
    ├── UserError(ValueError)        bad input to agentrl: says what, got, do
    ├── WorkflowError                the workflow's own code raised
    │   └── RewardError              the reward function raised or gave no finite number
    ├── ToolError                    a tool failed, hung or was used wrongly
    ├── SandboxError                 the sandbox failed (never: a command in it failed)
    ├── EngineError                  the engine failed to answer
    │   ├── EngineAborted            the request was aborted; carries what was sampled
    │   └── ContextOverflow          prompt and reply do not fit the model's context
    ├── StoreError                   the store could not write or read
    │   ├── LeaseLost                another writer owns the episode or the run
    │   └── RunLocked                another process trains in this run folder
    ├── ReplayDiverged               the code no longer asks for what the record holds
    ├── EffectFailed                 an effect of the workflow raised something that has no class here
    ├── UnknownEffect                an effect was begun and its outcome is unknown
    └── LearnerError                 the learner could not make a step

User code raises plain Python. `boundary` turns what escapes into the class that names the culprit; the runtime makes of it a
recorded value (`Failure`), which never cancels a sibling and never enters a baseline as reward 0.
"""

from __future__ import annotations

import builtins
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

Fault: TypeAlias = Literal[
    "workflow", "reward", "tool", "sandbox", "engine", "store", "replay", "effect", "learner", "user", "runtime"
]


class AgentRLError(Exception):
    """Root of every error that agentrl raises on purpose."""

    fault: Fault = "runtime"


class UserError(AgentRLError, ValueError):
    """Bad input. The message says what was wrong, what was got and what to do."""

    fault = "user"


class WorkflowError(AgentRLError):
    """The workflow's own code raised; the cause is chained."""

    fault = "workflow"


class RewardError(WorkflowError):
    """The reward function raised, or gave something that is no finite number."""

    fault = "reward"


class ToolError(AgentRLError):
    """A tool failed, hung or was used wrongly."""

    fault = "tool"


class SandboxError(AgentRLError):
    """The sandbox itself failed; a failing command inside it is a result, never this."""

    fault = "sandbox"


class EngineError(AgentRLError):
    """The engine failed to answer. `retryable` tells whether the same request may be sent again."""

    fault = "engine"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class EngineAborted(EngineError):
    """The request was aborted from outside before it finished."""


class ContextOverflow(EngineError):
    """Prompt and reply do not fit into the model's context."""


class StoreError(AgentRLError):
    """The store could not write or read."""

    fault = "store"


class LeaseLost(StoreError):
    """Another writer owns the episode now; this one must stop."""


class RunLocked(StoreError):
    """Another process trains in this run folder."""


class ReplayDiverged(AgentRLError):
    """The code asked for something else than the record holds.

    The message names the branch, the effect and both requests.
    """

    fault = "replay"


class EffectFailed(AgentRLError):
    """An effect raised an error whose class is neither Python's nor ours; the message begins with its name."""

    fault = "workflow"


class UnknownEffect(AgentRLError):
    """An effect that outlives the process was begun before a crash and its outcome is unknown."""

    fault = "effect"


class LearnerError(AgentRLError):
    """The learner could not make a step."""

    fault = "learner"


@contextmanager
def boundary(kind: type[AgentRLError], what: str) -> Generator[None]:
    """Names the culprit: whatever escapes the block leaves as `kind`, its cause chained.

    Errors that already carry a culprit pass unchanged, and so does everything that is no `Exception`
    (cancellation, keyboard interrupts).
    """
    try:
        yield
    except AgentRLError:
        raise
    except Exception as error:
        raise kind(f"{what}: {describe(error)}") from error


class capture:
    """Takes in whatever error ends the block and keeps it as a value: `with capture() as caught: ...; caught.error`.

    Cancellation and what else is no `Exception` pass through. For the few owners of foreign code that must go on.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> capture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self.error = error
            return True
        return False


@contextmanager
def unwrapped() -> Generator[None]:
    """Out of a group of errors that ends the block comes the first that names a culprit, its fellows chained."""
    try:
        yield
    except BaseExceptionGroup as group:
        for leaf in _leaves(group):
            if isinstance(leaf, AgentRLError | KeyboardInterrupt):
                raise leaf from group
        raise


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def describe(error: BaseException) -> str:
    """One line for an error: its class and message, groups flattened to their leaves."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe(leaf) for leaf in error.exceptions)
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def record_error(error: BaseException) -> dict[str, str]:
    """An error as JSON, from which `recreate_error` makes one of the same kind in any process."""
    return {"type": type(error).__name__, "message": str(error)}


def recreate_error(recorded: dict[str, str]) -> Exception:
    """The error that was recorded: Python's own and agentrl's by class, any other as `EffectFailed`."""
    name, message = recorded["type"], recorded["message"]
    known = getattr(builtins, name, None) or globals().get(name)
    if isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, ExceptionGroup | UnicodeError):
        return known(message)
    return EffectFailed(f"{name}: {message}")
