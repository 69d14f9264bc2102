"""The report in a browser: it asks for nothing, complains of nothing, and fits narrow and wide windows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.report import gather, write_page
from agentrl.store.sqlite import SQLiteStore
from tests.report.test_report import store_episode, write_metrics

pytest.importorskip("aiohttp")
from tests.view.chromium import browser, found  # it needs aiohttp

pytestmark = [pytest.mark.drifts, pytest.mark.skipif(found() is None, reason="no chromium on the path")]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
async def test_the_page_shows_itself(tmp_path: Path, width: int, dark: bool) -> None:
    write_metrics(tmp_path, range(1, 30), **{"loop_lag/mean": 0.001, "loop_lag/p99": 0.01, "loop_lag/max": 0.02})
    with SQLiteStore(tmp_path / "store.db") as store:
        for number in range(8):
            store_episode(store, f"s{number:06d}.000.0", step=number)
        store.flush_sync()
    address = write_page(gather(tmp_path), tmp_path / "report.html").as_uri()
    program = found()
    assert program is not None
    async with browser(program, tmp_path / "profile") as tab:
        await tab.open(address, width=width, dark=dark)
        assert tab.requests == [address]
        assert tab.problems == []
        assert await tab.ask("document.documentElement.scrollWidth <= innerWidth")
        lines = "[...document.querySelectorAll('svg .line')]"
        assert await tab.ask(f"{lines}.length") >= 4
        assert await tab.ask(f"{lines}.every(line => line.getBBox().width > 100 && getComputedStyle(line).stroke != 'none')")
        paper = await tab.ask("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
