"""An edited fork in a process that a test kills: `python -m tests.runtime.edited FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agentrl import Runtime, faults
from agentrl.engines.scripted import Scripted
from agentrl.store.sqlite import SQLiteStore
from tests.agents import renderer
from tests.runtime.edits import STORY, Desk, Place, asking, changed

GROUP = "told+fork"


async def main(folder: Path) -> None:
    experiment = asking(Desk())
    with SQLiteStore(folder / "store.db", commit_seconds=0.0, fault=faults.point) as store:
        engine = Scripted(STORY, renderer=renderer())
        async with Runtime(experiment, store=store, engine=engine, renderers={"policy": renderer()}) as runtime:
            if any(head.group == GROUP for head in store.heads()):
                await runtime.run("Go.", group=GROUP)
            else:
                told = store.episode("told.0")
                sheet = Place(experiment, store, runtime).sheet(told, 2)
                edit = sheet.edit(changed(sheet, {"turn 2": told.turns[1].text.replace("So:", "Well:"), "result 1": "by hand"}))
                await runtime.fork("Go.", told, edit.cut, group=GROUP, member=0, edited=edit.effects)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
