"""A writer to be killed: `crash_writer.py FILE POINT COUNT` appends numbered effects and prints each number that is durable.

At the COUNT-th time that POINT is reached the process kills itself with SIGKILL; with POINT "never" it writes on until killed.
POINT "full" caps the pages of the file at COUNT, "limit" the bytes of any file, and writes until the store says it failed.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from agentrl.errors import StoreError
from agentrl.store.sqlite import SQLiteStore
from tests.store.store_values import make_effect, make_head, make_turn


async def main(path: Path, point: str, count: int) -> None:
    reached = 0

    def fault(name: str) -> None:
        nonlocal reached
        reached += name == point
        if name == point and reached == count:
            os.kill(os.getpid(), signal.SIGKILL)
        if point == "full" and name == "store.before_commit":
            assert store._writer is not None
            store._writer._connection.execute(f"PRAGMA max_page_count = {count}")

    store = SQLiteStore(path, commit_seconds=0.001, fault=fault)
    try:
        with store:
            store.begin(make_head("e"))
            if point == "limit":
                resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))
            for n in range(1_000_000):
                store.append("e", [make_effect(n, value=n), make_effect(n, turn=make_turn(n), kind="model")])
                if n % 7 == 0:
                    await store.flush()
                    print(n, flush=True)
                elif n % 3 == 0:
                    await asyncio.sleep(0)
    except StoreError as error:
        said = [str(error), str(type(error.__cause__).__name__)]
        for call in (
            lambda: store.append("e", []),
            lambda: store.begin(make_head("f")),
            store.flush_sync,
            lambda: store.put_blob(b""),
        ):
            try:
                call()
            except StoreError as again:
                said.append(str(again))
        print("failed", *said, sep="\t", flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
