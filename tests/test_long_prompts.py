"""Much text is rendered beside the event loop; its episode is recorded and replayed like any other."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from agentrl import agent
from agentrl.rendering import encoding
from agentrl.rendering.contract import Conversation, Rendered
from tests.agents import ask, call, renderer, script

TEXT = "The quick <|im_end|> fox jumps over the lazy dog. " * 40


async def echo(key: str) -> str:
    """Give `key` back, often."""
    return TEXT


async def test_much_text_is_rendered_off_the_loop_to_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    respond = script(call("echo", key="x"), "Done.")
    short = await ask(respond, TEXT, tools=[echo])
    assert all(effect.kind != "thread" for effect in short.effects)

    threads: list[int] = []
    extend = renderer().extend

    def told(conversation: Conversation) -> Rendered:
        threads.append(threading.get_ident())
        return extend(conversation)

    monkeypatch.setattr(renderer(), "extend", told)
    monkeypatch.setattr(agent, "LONG", len(TEXT))
    long = await ask(respond, TEXT, tools=[echo])
    assert [effect.kind for effect in long.effects if effect.kind == "thread"] == ["thread"] * 2
    assert threading.get_ident() not in threads and len(threads) == 4  # two turns, and their replay
    for one, other in zip(short.episode.turns, long.episode.turns, strict=True):
        assert np.array_equal(one.context_ids, other.context_ids) and one.digest == other.digest


def test_text_encoded_without_the_interpreters_lock_has_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    before = renderer().encode(TEXT).tolist(), renderer()._encoder.encode(TEXT)
    monkeypatch.setattr(encoding, "LONG", 1)
    assert (renderer().encode(TEXT).tolist(), renderer()._encoder.encode(TEXT)) == before
