"""The example server of docs/tools.md serves what `Retriever` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aiohttp import web

from agentrl_tools.retriever import Retriever
from agentrl_tools.search import Search
from tests.tools.servers import CORPUS

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "tools.md"


async def test_the_example_server_answers_a_retriever() -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL) if "run_app" in block]
    example: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "tools.md", "exec"), example)
    runner = web.AppRunner(example["application"](Search(CORPUS, top_k=3)), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tool = Retriever(f"http://127.0.0.1:{runner.addresses[0][1]}/retrieve", topk=2)
    found = await tool.find("Peru")
    await tool.aclose()
    await runner.cleanup()
    assert found[0].id == "pe"
    assert [passage.score for passage in found] == [1.0, 0.5]
