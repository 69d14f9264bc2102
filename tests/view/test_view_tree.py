"""An episode as a tree, and a run's episodes as a list."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentrl.episode import Candidate, Episode, Failure, Ledger, Probe, Reward, Version, VersionSpan, token_ids
from agentrl.view import render_list, render_tree
from agentrl.view.text import columns, visible, wrap
from tests.view.episodes import call, credit, episode, turn

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def plain(given: Episode, **options: Any) -> str:
    return render_tree(given, color=False, **options)


def test_everything_that_is_known_of_an_episode_is_shown() -> None:
    first = turn(
        ":0", "searcher", 0, "<search>capital of Peru</search>", tool_calls=(call(attempts=2),),
        rewards=(Reward("gold", 0.5, ":0"),), observation="a document",
        probes=(Probe("answer", 3, token_ids([4]), np.zeros(1, np.float32), value=-1.25),),
    )  # fmt: skip
    second = turn(":2", "searcher", 1, "Lima", ":0", finish="length", valid=False, forced=1, untrained="drift")
    shown = plain(
        episode(
            (first, second),
            output="Lima",
            rewards=(Reward("exact", 1.0), Reward("style", 0.25, agent="searcher")),
            metrics={"hops": 2.0},
            stops=(("searcher", "answered"),),
            ledger=Ledger(6, 4, 0, 20, 10, 1, 2, {"usd": 0.5}),
            fork_of="g6.1",
            fork_cut=9,
        )
    )
    for expected in (
        "episode g7.0 done",
        "fork of g6.1 at 9",
        'task {"text": "Which city?"}',
        "● searcher 0",
        "2+3 tokens  stop  p@12  0.50 s  :0",
        "<search>capital of Peru</search>",
        '→ search(query="capital of Peru")',
        "ok  0.25 s  2 attempts",
        "Lima",
        "sees a document",
        "reward gold = 0.5",
        "probe answer at 3, 1 tokens = -1.25",
        "● searcher 1",
        "length",
        "invalid format",
        "first 1 tokens forced",
        "not trained: drift",
        "output Lima",
        "reward exact = 1",
        "reward style = 0.25 for searcher",
        "metrics hops = 2",
        "stops searcher: answered",
        "6 tokens sampled, 20 of prompts (10 cached), 4 lost, 2 model calls, 1 tool calls, usd = 0.5",
    ):
        assert expected in shown, f"{expected!r} is not in\n{shown}"


def test_a_failed_episode_says_whose_fault_it_was() -> None:
    shown = plain(episode(status="failed", failure=Failure("tool", "search hung\nfor ever")))
    assert "episode g7.0 failed" in shown
    assert "failure (tool) search hung" in shown


def test_turns_that_go_on_stand_below_each_other_however_many() -> None:
    turns = [turn(":0", "a", 0, "x")] + [turn(f":{n}", "a", n, "x", f":{n - 1}") for n in range(1, 30)]
    lines = [line for line in plain(episode(turns)).splitlines() if "●" in line]
    assert len(lines) == 30
    assert all(line.startswith("● a ") for line in lines)


def test_branches_are_indented_below_the_turn_they_go_on_from() -> None:
    turns = [
        turn("r", "a", 0, "root text"),
        turn("l", "a", 1, "left text", "r"),
        turn("l2", "a", 2, "left on", "l"),
        turn("m", "a", 1, "right text", "r", candidate=Candidate("c", 1, False)),
    ]
    lines = [line.rstrip() for line in plain(episode(turns)).splitlines()]
    tree = [line for line in lines if "●" in line or "text" in line or "left on" in line]
    shape = [
        line[: next(at for at, sign in enumerate(line) if sign.isalpha() or sign == "●")]
        for line in tree
        if "Which" not in line
    ]
    assert shape == ["", "│ ", "├─", "│ │ ", "│ ", "│   ", "└─", "    "]
    assert any("candidate 1 of c, not chosen" in line for line in lines)


def test_every_agents_fresh_context_is_a_root() -> None:
    turns = [turn("x", "coder", 0, "def f"), turn("y", "tester", 0, "assert"), turn("z", "coder", 1, "fixed", "x")]
    lines = [line for line in plain(episode(turns)).splitlines() if "●" in line]
    assert [line.split("  ")[0] for line in lines] == [
        "├─● coder 0 2+3 tokens",
        "│ ● coder 1 2+3 tokens",
        "└─● tester 0 2+3 tokens",
    ]


def test_a_turn_whose_parent_is_unknown_is_shown_all_the_same() -> None:
    assert "● a 3" in plain(episode([turn("x", "a", 3, "text", "lost")]))


def test_a_very_deep_tree_is_shown() -> None:
    turns = [turn("t0", "a", 0, "x")]
    for n in range(1, 3000):
        turns += [turn(f"t{n}", "a", n, "x", f"t{n - 1}"), turn(f"u{n}", "a", n, "x", f"t{n - 1}")]
    assert plain(episode(turns), width=60).count("●") == len(turns)


def test_long_texts_are_shortened_unless_all_is_asked_for() -> None:
    long = "\n".join(f"line {n}" for n in range(50))
    given = episode([turn("x", "a", 0, long)])
    assert "[43 more lines]" in plain(given)
    assert "line 0" in plain(given)
    assert "line 49" in plain(given)
    assert "line 25" not in plain(given)
    assert all(f"line {n}" in plain(given, full=True) for n in range(50))


def test_contexts_are_shown_with_a_decoder() -> None:
    given = episode([turn("x", "a", 0, "")])
    assert "┆" not in plain(given)
    shown = plain(given, decode=lambda turn, ids: " ".join(f"<{int(number)}>" for number in ids))
    assert "┆ <1> <2>" in shown
    assert "<7> <8> <9>" in shown


def test_a_version_that_changed_within_a_turn_is_shown_as_both() -> None:
    spans = (VersionSpan(Version("r", "p", 3, "a"), 0, 1), VersionSpan(Version("r", "p", 4, "b"), 1, 3))
    assert "p@3→4" in plain(episode([turn("x", "a", 0, "t", versions=spans)]))


def test_nothing_a_model_writes_reaches_the_terminal_as_a_command() -> None:
    evil = "\x1b[2Jgone\x07\x9b31m\r\u202eabc\x00"
    given = episode(
        [turn("x", evil, 0, evil, tool_calls=(call(name=evil, output=evil, arguments={evil: evil}),))],
        output=evil, task=evil, failure=Failure("tool", evil),
    )  # fmt: skip
    shown = plain(given)
    assert not [sign for sign in shown if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf")]
    assert "\\x1b[2Jgone\\x07" in shown
    colored = render_tree(given, color=True)
    assert "\x1b" not in ANSI.sub("", colored)


def test_colour_changes_nothing_but_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    given = episode(
        [turn("x", "a", 0, "text", tool_calls=(call(status="timeout"),), rewards=(Reward("r", 1.0, "x"),))], output="o"
    )
    colored = render_tree(given, color=True)
    assert colored != plain(given)
    assert ANSI.sub("", colored) == plain(given)
    monkeypatch.setenv("NO_COLOR", "1")
    assert render_tree(given) == plain(given)


@example(texts=["00000000000\x1f\x1f \U00014647\U00018cd6\U00018cd6\U00018cd6"], parents=[0] * 8, width=40)
@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.text(max_size=200), min_size=1, max_size=8),
    parents=st.lists(st.integers(-1, 6), min_size=8, max_size=8),
    width=st.integers(40, 140),
)
def test_no_line_is_wider_than_asked_for(texts: list[str], parents: list[int], width: int) -> None:
    turns = [
        turn(
            f"t{n}",
            text[:30] or "a",
            n,
            text,
            f"t{parents[n]}" if 0 <= parents[n] < n else None,
            tool_calls=(call(output=text),),
        )
        for n, text in enumerate(texts)
    ]
    shown = render_tree(episode(turns, output=texts[0], task=texts[-1]), color=False, width=width)
    assert shown.count("●") >= len(turns)
    for line in shown.split("\n"):
        assert columns(line) <= width


@given(
    text=st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\n"), max_size=100),
    width=st.integers(2, 40),
)
def test_wrapping_loses_nothing_but_blanks(text: str, width: int) -> None:
    pieces = wrap(text, width)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(columns(piece) <= width for piece in pieces)


def test_wide_characters_count_twice() -> None:
    assert columns("日本") == 4
    assert wrap("日本語", 4) == ["日本", "語"]
    assert visible("a\tb\x1b") == "a    b\\x1b"


def test_a_list_has_a_line_for_each_episode() -> None:
    one = episode([turn("x", "a", 0, "t")], rewards=(Reward("r", 0.5),), ledger=Ledger(sampled_tokens=42, tool_calls=3))
    lines = render_list([("train", 3, one), ("eval", 10, replace(one, id="e1.0", status="failed"))], color=False).splitlines()
    assert [line.split() for line in lines] == [
        ["episode", "split", "step", "status", "reward", "turns", "tools", "tokens", "seconds"],
        ["g7.0", "train", "3", "done", "0.5", "1", "3", "42", "3.50"],
        ["e1.0", "eval", "10", "failed", "0.5", "1", "3", "42", "3.50"],
    ]


# --- credit -----------------------------------------------------------------------------------------------------------------
def test_each_turn_shows_the_credit_that_it_was_trained_with() -> None:
    turns = [turn("x", "a", 0, "t"), turn("y", "a", 1, "t", "x"), turn("z", "a", 2, "t", "y"), turn("u", "a", 3, "t", "z")]
    given = {"x": credit(turns[0], 0.5), "y": credit(turns[1], [-2.0, 0.0, -1.0]), "z": credit(turns[2], 0.25, 0.75)}
    shown = plain(episode(turns), credit=given)
    assert "● a 0 credit +0.5 2+3 tokens" in shown
    assert "● a 1 credit -1 (-2 to +0) 2+3 tokens" in shown
    assert "● a 2 credit +0.5 in 2 rows 2+3 tokens" in shown
    assert shown.count("in no trained row") == 1
    assert "learned in step 3" in shown
    assert "credit" not in plain(episode(turns))


def test_credit_of_forced_tokens_does_not_count() -> None:
    one = turn("x", "a", 0, "t", forced=2)
    assert "credit +4 2+3 tokens" in plain(episode([one]), credit={"x": credit(one, [-9.0, -9.0, 4.0])})


def test_turns_are_coloured_by_sign_and_size_of_their_credit() -> None:
    values = {"up": 3.0, "some": 1.5, "little": 0.3, "down": -3.0, "nil": 0.0}
    turns = [turn(name, "a", n, f"text {name}") for n, name in enumerate(values)]
    given = {each.id: credit(each, values[each.id]) for each in turns}
    shown = render_tree(episode(turns), color=True, credit=given)
    for name, code in {"up": "32;1", "some": "32", "little": "32;2", "down": "31;1"}.items():
        assert f"\x1b[{code}mtext {name}\x1b[0m" in shown
    assert "\x1b[0mtext nil\n" in shown
    assert ANSI.sub("", shown) == plain(episode(turns), credit=given)
