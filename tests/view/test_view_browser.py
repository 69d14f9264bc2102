"""Pages in headless Chromium: what is seen, what can be pressed, what is asked of the network.

Skipped where there is no Chromium; with AGENTRL_BROWSER=1 that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agentrl.cli import main
from agentrl.episode import Column, Reward
from agentrl.view.html import Shown, diff_page, episode_page, list_page
from agentrl.view.tokens import Vocabularies
from tests.view.chromium import Browser, browser, found
from tests.view.episodes import call, credit, episode, turn

CHROMIUM = found()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and os.environ.get("AGENTRL_BROWSER") != "1", reason="no chromium on the path"),
]
ATTACK = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
TRANSPARENT = "rgba(0, 0, 0, 0)"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None, "AGENTRL_BROWSER=1, and no chromium is on the path"
    async with browser(CHROMIUM, tmp_path / "profile") as opened:
        yield opened
        assert opened.problems == []
        assert [address for address in opened.requests if not address.startswith("file:")] == []
        assert len(opened.requests) == 1


@pytest.fixture
def shown() -> Shown:
    entropy = {"entropy": Column("entropy", np.array([0.0, 0.5, 1.0], np.float32))}
    first = turn("x", "a", 0, ATTACK, columns=entropy, tool_calls=(call(output=ATTACK),))
    turns = [first, *(turn(f"t{n}", "a", n, f"text {n}", f"t{n - 1}" if n > 1 else "x") for n in range(1, 30))]
    given = episode(turns, output=ATTACK, rewards=(Reward("exact", 1.0),))
    return Shown(given, "train", 3, {"x": credit(first, [-1.0, 0.0, 1.0])}, Vocabularies({}))


def put(folder: Path, page: str, fragment: str = "") -> str:
    """The page's address."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    return file.resolve().as_uri() + fragment


async def colors(tab: Browser) -> list[str]:
    """Of the first three tokens."""
    return await tab.ask(
        "[...document.querySelectorAll('.tokens .t')].slice(0, 3).map(t => getComputedStyle(t).backgroundColor)"
    )


async def test_tokens_change_their_colour_with_the_switch(tab: Browser, shown: Shown, tmp_path: Path) -> None:
    await tab.open(put(tmp_path, episode_page(shown)))
    by_credit = await colors(tab)
    assert len(set(by_credit)) == 3
    assert by_credit[1].endswith(" 0)") or by_credit[1] == TRANSPARENT
    await tab.click("#by-logprob")
    by_logprob = await colors(tab)
    assert len(set(by_logprob)) == 3
    assert not set(by_logprob) & set(by_credit)
    assert await tab.ask("location.hash") == "#color=logprob"
    await tab.click("#by-none")
    assert len(set(await colors(tab))) == 1
    assert await tab.ask("document.title") == "episode g7.0"


async def test_the_address_can_name_a_colour_and_a_turn(tab: Browser, shown: Shown, tmp_path: Path) -> None:
    await tab.open(put(tmp_path, episode_page(shown), "#color=entropy"))
    assert await tab.ask("document.querySelector('#by-entropy').checked")
    await tab.open(put(tmp_path, list_page("run", [shown]), "#e0t29"))
    assert await tab.ask("document.querySelector('#e0').open")
    top = await tab.ask("document.querySelector('#e0t29').getBoundingClientRect().top")
    assert await tab.ask("document.querySelector('header').getBoundingClientRect().bottom") <= top < 900


async def test_turns_are_folded_and_tokens_tell_what_is_known(tab: Browser, shown: Shown, tmp_path: Path) -> None:
    await tab.open(put(tmp_path, episode_page(shown)))
    await tab.click("#fold")
    assert await tab.ask("document.querySelectorAll('details.turn[open]').length") == 0
    await tab.click("#fold")
    await tab.click(".tokens .t")
    assert await tab.ask("document.querySelector('#told').textContent") == "0: id 7 · log-prob -0.5 · advantage -1 · entropy 0"


async def test_the_list_is_sorted_by_the_column_that_is_pressed(tab: Browser, shown: Shown, tmp_path: Path) -> None:
    rewards = {"g1": 10.0, "g2": 9.0, "g3": -1.0}
    given = [
        replace(shown, episode=replace(shown.episode, id=name, rewards=(Reward("r", value),)))
        for name, value in rewards.items()
    ]
    await tab.open(put(tmp_path, list_page("run", given)))
    order = "[...document.querySelectorAll('.list tbody tr')].map(row => row.cells[0].textContent).join(' ')"
    await tab.click(".list th:nth-child(5) button")
    assert await tab.ask(order) == "g3 g2 g1"
    await tab.click(".list th:nth-child(5) button")
    assert await tab.ask(order) == "g1 g2 g3"


async def test_all_is_there_without_scripts(tab: Browser, shown: Shown, tmp_path: Path) -> None:
    await tab.call("Emulation.setScriptExecutionDisabled", value=True)
    await tab.open(put(tmp_path, episode_page(shown)))
    assert await tab.ask("document.querySelector('#fold')") is None
    assert "text 29" in await tab.ask("document.body.innerText")
    before = await colors(tab)
    await tab.click("#by-logprob")
    assert not set(await colors(tab)) & set(before)


@pytest.mark.parametrize("dark", [False, True])
async def test_every_shade_can_be_read(tab: Browser, shown: Shown, tmp_path: Path, dark: bool) -> None:
    await tab.open(put(tmp_path, diff_page(shown, shown)), dark=dark)
    for choice in ("difference", "credit", "logprob", "entropy"):
        await tab.click(f"#by-{choice}")
        ratio = await tab.ask(
            f"{CONTRAST}; Math.min(...[...document.querySelectorAll('.legend.of-{choice} .t')].map(contrast))"
        )
        assert ratio >= 4.5, f"{choice}: {ratio}"


CONTRAST = """
function channels(element, name) {  // painted by the browser, over what lies below
  const canvas = document.createElement("canvas").getContext("2d");
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
  if (name === "color") layers.push(getComputedStyle(element).color);
  for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function luminance(rgb) {  // WCAG 2
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element) {
  const [a, b] = [luminance(channels(element, "color")), luminance(channels(element, "background"))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


@pytest.mark.parametrize("width", [360, 1200])
async def test_nothing_is_wider_than_the_window(tab: Browser, shown: Shown, tmp_path: Path, width: int) -> None:
    await tab.open(put(tmp_path, diff_page(shown, shown)), width=width)
    assert await tab.ask("document.documentElement.scrollWidth") <= width


async def test_a_page_of_a_real_run_is_drawn(tab: Browser, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.html"
    assert main(["view", str(run), "s000001.000.1", "--html", str(file)]) == 0
    await tab.open(file.resolve().as_uri())
    assert len(set(await colors(tab))) <= 3
    assert await tab.ask("document.querySelectorAll('rect.turn').length") >= 1
    assert (await tab.photograph()).startswith(b"\x89PNG")
