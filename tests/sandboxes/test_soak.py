"""A short soak: sandboxes killed, cut off and abandoned at random leave nothing. `soak.py` is a program for long ones."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.errors import UserError
from agentrl_sandboxes.process import Process
from tests.sandboxes.soak import soaked


def test_a_soak_leaves_nothing_and_no_wrong_answer() -> None:
    async def probe() -> None:
        async with Process(warm=0).open():
            pass

    try:
        asyncio.run(probe())
    except UserError as error:
        pytest.skip(str(error))
    soak, left = soaked("process", sessions=200, at_once=6, seed=1)
    assert soak.wrong == []
    assert not any(left.values()), left
    assert soak.done["killed"] > 5
    assert soak.done["lost"] > 0
