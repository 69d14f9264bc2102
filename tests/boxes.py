"""Episodes that use boxes, by a real runtime: a policy that is a script, a real store, a sandbox of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agentrl import Agent, Experiment, Policy, Runtime, workflow
from agentrl.engines.scripted import Scripted
from agentrl.rollout import Independent
from agentrl.runtime.runtime import Runtime as Running
from agentrl.sandbox import SandboxSpec
from agentrl.store.sqlite import SQLiteStore
from agentrl.workflow import Workflow
from tests.agents import Respond, renderer, script


def experiment(
    function: Callable[..., Any] | Workflow[Any, Any],
    sandbox: SandboxSpec | None,
    *,
    agents: Sequence[Agent] = (),
    rollout: Any = None,
    **settings: Any,
) -> Experiment[Any, Any]:
    """An experiment around a workflow function; its agents share one policy."""
    made = function if isinstance(function, Workflow) else workflow(*agents)(function)
    return Experiment(made, policies=Policy("policy"), sandbox=sandbox, rollout=rollout or Independent(2), **settings)


def running(of: Experiment[Any, Any], store: SQLiteStore | None = None, respond: Respond | None = None) -> Running[Any, Any]:
    """A runtime of it, to be entered."""
    engine = Scripted(respond or script("Done."), renderer=renderer())
    return Runtime(of, store=store, engine=engine, renderers={"policy": renderer()})


def store_at(folder: Path) -> SQLiteStore:
    """A store that commits at once; the folder is made."""
    folder.mkdir(exist_ok=True)
    return SQLiteStore(folder / "store.db", commit_seconds=0.0)
