"""One program over a real store, in a process that a test kills: `python -m tests.runtime.killed STORE SEED PROGRAM`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from agentrl import faults
from agentrl.limits import Limits
from agentrl.runtime.execution import Execution, Program, Surroundings
from agentrl.runtime.scope import EffectTasks
from agentrl.runtime.threads import DaemonThreads
from agentrl.runtime.turnstile import Turnstile
from agentrl.store.sqlite import SQLiteStore
from agentrl.team import Team
from tests.runtime.harness import HEAD
from tests.runtime.programs import Bench, workflow


def as_node(value: Any) -> Any:
    """A program as JSON has it, as the interpreter takes it."""
    return tuple(as_node(item) for item in value) if isinstance(value, list) else value


async def main(path: str, seed: int, program: Any) -> None:
    threads = DaemonThreads()
    with SQLiteStore(path, commit_seconds=0.0, fault=faults.point) as store:
        if any(head.id == HEAD.id for head in store.heads()) and store.tail(HEAD.id) is not None:
            return
        store.begin(HEAD)
        await store.flush()
        run = workflow(program, Bench(seed))
        async with EffectTasks(1.0) as tasks:
            around = Surroundings(tasks, Turnstile(), threads, Limits(grace=1.0, deadline=30.0), store)
            begin = Program(lambda world: run(None, Team(world, {}, {}, threads.run)), None)
            _, tail = await Execution(HEAD, store.journal(HEAD.id), begin, around).run()
        store.finish(HEAD.id, tail)
    threads.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), as_node(json.loads(sys.argv[3]))))
