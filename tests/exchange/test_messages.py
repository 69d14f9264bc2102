"""Messages in an export: the model's own template makes of them what the model was given and sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentrl.episode import Parent, Segment, ToolCall
from agentrl.exchange import messages_of, read_entries
from agentrl.rendering.folder import read_folder
from agentrl_workflows.search_qa.model import make_model
from tests.exchange.test_exchange import an_episode
from tests.store.store_values import make_turn
from tests.test_cli import SKY, run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two batches whose agent searches and answers."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model", hidden=32, layers=1, heads=2, head_dim=16, ff=32)
    (folder / "sky.py").write_text(SKY)
    run(folder, "train", "sky.py:shown", "--out", "run")
    return folder


def test_the_template_makes_of_the_messages_what_was_sampled(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run(place, "export", "run", "e.jsonl", "--as", "messages")
    model = sorted((place / "run" / "checkpoints" / "searcher").iterdir())[-1]
    template = transformers.AutoTokenizer.from_pretrained(str(model))
    plain = read_folder(model).tokenizer
    rows = [json.loads(line) for line in (place / "e.jsonl").read_text().splitlines()]
    entries = list(read_entries(place / "e.jsonl"))
    assert len(rows) == len(entries) > 8
    for row, entry in zip(rows, entries, strict=True):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
        assert row["messages"][1]["tool_calls"][0]["function"] == {"name": "search", "arguments": {"query": "sky"}}
        assert row["reward"] == 1.0
        path = entry.episode.path(entry.episode.turns[-1])
        assert template.apply_chat_template(row["messages"], tokenize=False) == plain.decode(path.tolist(), False)


def test_columns_hold_the_same_messages_with_the_arguments_as_text(place: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run(place, "export", "run", "e.parquet", "--as", "messages", "--split", "train", HF_HUB_OFFLINE="1")
    rows = datasets.Dataset.from_parquet(str(place / "e.parquet"), cache_dir=str(place / "cache"))
    assert len(rows) == 8
    said = rows[0]["messages"][1]
    assert (said["role"], said["content"]) == ("assistant", "")
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"query": "sky"}
    assert len(list(read_entries(place / "e.parquet"))) == 8


def test_a_store_without_a_run_has_no_tokenizer(place: Path) -> None:
    (place / "alone").mkdir(exist_ok=True)
    (place / "alone" / "store.db").write_bytes((place / "run" / "store.db").read_bytes())
    done = run(place, "export", "alone", "alone.jsonl", "--as", "messages", code=1)
    assert "holds no run" in done.stderr
    assert not (place / "alone.jsonl").exists()


def test_roles_that_the_template_writes_as_words_are_taken_off() -> None:
    texts = {1: "system\nbe brief", 2: "user\nwhy?", 3: "user\n<tool_response>\nx\n</tool_response>", 4: "because"}

    def decode(turn: Any, ids: Any) -> str:
        return "".join(texts[number] for number in ids)

    def segments(*roles: str) -> tuple[Segment, ...]:
        return tuple(Segment(role, at, at + 1) for at, role in enumerate(roles))

    first = make_turn(0, (4,), context_ids=[1, 2], segments=segments("system", "user"))
    call = ToolCall("look", {"at": 1}, "ok", "x", 0.0, 0.1, call_id="c1")
    asks = make_turn(0, (4,), context_ids=[1, 2], segments=segments("system", "user"), tool_calls=(call,))
    then = make_turn(1, (4,), context_ids=[3], segments=segments("tool"), parent=Parent(asks.id, 3))
    system, user = {"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}
    assert messages_of(an_episode(turns=(first,)), decode, lambda turn, text: "") == [
        system, user, {"role": "assistant", "content": "because"},
    ]  # fmt: skip
    made = messages_of(an_episode(turns=(asks, then)), decode, lambda turn, text: "let me look")
    assert made[2]["content"] == "let me look"
    assert made[2]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": 1}}}]
    assert made[3:] == [
        {"role": "tool", "content": "x", "name": "look", "tool_call_id": "c1"}, {"role": "assistant", "content": "because"},
    ]  # fmt: skip
    assert messages_of(an_episode(turns=()), decode, lambda turn, text: text) == []
