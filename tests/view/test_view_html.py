"""Pages of episodes: whole, safe, and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from agentrl.episode import Candidate, Column, Episode, Failure, Probe, Reward, Segment, State, token_ids
from agentrl.view.html import Shown, diff_page, episode_page, list_page
from agentrl.view.html.diff import align, differing
from agentrl.view.text import visible
from agentrl.view.tokens import Vocabularies
from agentrl_workflows.search_qa.model import make_model
from tests.view.episodes import call, credit, episode, turn

VOID = {"meta", "input"}
NO_VOCABULARY = Vocabularies({})
EVIL = "</span></div><script>alert(1)</script><img src=x onerror=alert(1)>\"' & \x1b[2J\u202egnp\x00\ud800"


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None]
    inner: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(each if isinstance(each, str) else each.text for each in self.inner)

    def all(self, name: str = "", style: str = "") -> Iterator[Element]:
        """The elements in it of a name and a class."""
        for each in self.inner:
            if isinstance(each, Element):
                if name in ("", each.name) and (not style or style in (each.attributes.get("class") or "").split()):
                    yield each
                yield from each.all(name, style)


class Parsed(HTMLParser):
    """A page as a tree; fails where an element is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(page)
        self.close()
        assert self._open == [self.root], f"never closed: {self._open[1:]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].inner.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].name == tag, f"</{tag}> closes <{self._open[-1].name}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].inner.append(data)


def parse(page: str) -> Element:
    return Parsed(page).root


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Vocabularies:
    model = make_model(tmp_path_factory.mktemp("model"), hidden=32, layers=1, heads=2, head_dim=16, ff=32)
    return Vocabularies({"words": Tokenizer.from_file(str(model / "tokenizer.json"))})


def show(given: Episode, vocabularies: Vocabularies = NO_VOCABULARY, **advantages: Any) -> Shown:
    """As a run would show it; `advantages` by turn id."""
    trained = {name: credit(given.by_id[name], value) for name, value in advantages.items()}
    return Shown(given, "train", 3, trained, vocabularies)


def tokens(page: Element) -> list[list[Element]]:
    """The tokens of each turn."""
    return [list(each.all("span", "t")) for each in page.all("div", "tokens")]


def told(token: Element) -> list[str]:
    return (token.attributes["title"] or "").split(" · ")


# --- completeness -------------------------------------------------------------------------------------------------------------
def test_a_page_shows_all_that_is_known_of_an_episode() -> None:
    one = turn(
        "x", "searcher", 0, "", tool_calls=(call(attempts=2), call(status="timeout", output="")), observation="a document",
        rewards=(Reward("gold", 0.5, "x"),), probes=(Probe("answer", 3, token_ids([4]), np.zeros(1, np.float32), value=-1.25),),
        state=State("before key", "after key", "action key"), costs={"usd": 0.25}, candidate=Candidate("c", 1, False),
        valid=False, untrained="drift", finish="length",
    )  # fmt: skip
    given = episode(
        [one], output="Lima", rewards=(Reward("exact", 1.0), Reward("style", 0.25, agent="searcher")), metrics={"hops": 2.0},
        stops=(("searcher", "answered"),), failure=Failure("tool", "it hung"), fork_of="g6.1",
    )  # fmt: skip
    page = parse(episode_page(show(given)))
    text = page.text
    for expected in (
        "g7.0 done", "group g7", "train 3", "seed 5", "fork of g6.1", "Which city?", "failure (tool)", "it hung", "exact = 1",
        "style = 0.25 for searcher", "hops = 2", "searcher: answered", "0 tokens sampled", "searcher 0",
        "2+3 tokens · length · p@12",
        "candidate 1 of c, not chosen", "invalid format", "not trained: drift", 'search(query="capital of Peru")',
        "ok  0.25 s  2 attempts",
        "timeout", "Lima", "a document", "reward gold = 0.5", "probe answer at 3, 1 tokens = -1.25", "before before key",
        "after after key", "action action key", "cost usd = 0.25", "given 2 tokens",
    ):  # fmt: skip
        assert expected in text, expected


def test_every_token_is_there_with_all_that_is_known_of_it(vocabularies: Vocabularies) -> None:
    ids = vocabularies.tokenizers["words"].encode("nearest city of the capital of Norway?").ids
    entropy = {"entropy": Column("entropy", np.linspace(0, 1, len(ids), dtype=np.float32))}
    one = turn("x", "a", 0, "t", ids=ids, tokenizer="words", forced=1, columns=entropy)
    advantages = np.linspace(-1, 1, len(ids))
    page = parse(episode_page(show(episode([one]), vocabularies, x=advantages)))
    (found,) = tokens(page)
    assert "".join(token.text for token in found) == vocabularies.decode(one, one.sampled_ids)
    assert [told(token)[0].split()[:3] for token in found] == [[f"{at}:", "id", str(number)] for at, number in enumerate(ids)]
    assert told(found[0])[2] == "forced"
    assert told(found[-1])[1:] == ["log-prob -4", "advantage +1", "entropy 1"]
    styles = [(token.attributes["class"] or "").split() for token in found]
    assert "f" in styles[0] and "p8" not in styles[0]
    assert "p8" in styles[-1] and "l8" in styles[-1] and "e8" in styles[-1]
    assert [choice.attributes["value"] for choice in page.all("input")] == ["credit", "logprob", "entropy", "none"]


def test_colours_grow_with_what_they_mean_and_say_which_side() -> None:
    turns = [turn("x", "a", 0, "t", ids=range(5)), turn("y", "a", 1, "t", "x")]
    page = parse(episode_page(show(episode(turns), x=[-2.0, -0.5, 0.0, 1.0, 2.0])))
    first, second = tokens(page)
    styles = [(token.attributes["class"] or "").split() for token in first]
    assert [{*style} & {"n8", "n2", "p4", "p8"} for style in styles] == [{"n8"}, {"n2"}, set(), {"p4"}, {"p8"}]
    assert all("u" in (token.attributes["class"] or "").split() for token in second)
    assert [each.text for each in next(page.all("span", "of-credit")).all("span") if each.text.strip()][::1][:2] == ["−2", "+2"]


def test_tokens_that_nothing_learned_from_are_marked_beside_those_that_were() -> None:
    turns = [turn("x", "a", 0, "t"), turn("y", "a", 1, "t", "x")]
    for seen, marked in ((show(episode(turns)), [0, 0]), (show(episode(turns), x=1.0), [0, 3])):
        found = tokens(parse(episode_page(seen)))
        assert [sum("u" in (token.attributes["class"] or "").split() for token in each) for each in found] == marked


def test_what_was_given_is_shown_message_by_message(vocabularies: Vocabularies) -> None:
    ids = vocabularies.tokenizers["words"].encode("capital of Norway? Oslo").ids
    cut = len(ids) - 1
    one = turn("x", "a", 0, "t", tokenizer="words", context_ids=token_ids(ids),
               segments=(Segment("user", 0, cut), Segment("tool", cut, len(ids))))  # fmt: skip
    (context,) = parse(episode_page(show(episode([one]), vocabularies))).all("details", "context")
    assert [each.text for each in context.all("span", "role")] == ["user", "tool"]
    assert "".join(each.text for each in context.all("div", "text")) == "capital of Norway? Oslo"


def test_without_a_tokenizer_text_and_ids_are_shown_and_why() -> None:
    page = parse(episode_page(show(episode([turn("x", "a", 0, "the text")]), Vocabularies({}, ("the folder is gone",)))))
    assert [note.text for note in page.all("p", "note")] == ["the folder is gone"]
    (shown,) = page.all("div", "tokens")
    assert "the text" in shown.text
    assert [token.text.strip() for token in tokens(page)[0]] == ["7", "8", "9"]


def test_an_unknown_log_prob_is_said_to_be_so_and_not_coloured() -> None:
    one = turn("x", "a", 0, "t", logprobs=np.array([-1, np.nan, -2], np.float32))
    (found,) = tokens(parse(episode_page(show(episode([one])))))
    assert "log-prob nan" in told(found[1])
    assert "l8" in (found[2].attributes["class"] or "")
    assert "l" not in {style[0] for style in (found[1].attributes["class"] or "").split()}


def test_a_running_episode_is_shown_as_far_as_it_is() -> None:
    page = parse(episode_page(show(episode(status="running"))))
    assert "no turn yet" in page.text
    assert "running" in page.text


# --- safety -------------------------------------------------------------------------------------------------------------------
def test_nothing_a_model_writes_becomes_part_of_the_page(vocabularies: Vocabularies) -> None:
    one = turn(EVIL, EVIL, 0, EVIL, tool_calls=(call(name=EVIL, output=EVIL, arguments={EVIL: EVIL}),), observation=EVIL,
               untrained=EVIL, policy=EVIL, state=State(EVIL), rewards=(Reward(EVIL, 1.0),))  # fmt: skip
    given = episode([one], id=EVIL, group=EVIL, output=EVIL, task=EVIL, failure=Failure("tool", EVIL), metrics={EVIL: 1.0})
    plain = parse(episode_page(show(episode([turn("x", "a", 0, "t", tool_calls=(call(),))]))))
    for written in (episode_page(show(given)), list_page(EVIL, [show(given)]), diff_page(show(given), show(given))):
        page = parse(written)
        assert len(list(page.all("script"))) == 1
        assert not list(page.all("img"))
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\ud800-\udfff]", written)
        names = {element.name for element in page.all()}
        assert names <= {each.name for each in plain.all()} | {"table", "thead", "tbody", "tr", "td", "th", "a", "h1"}
        assert written.count("&lt;script&gt;alert(1)") > 8
        assert not [key for element in page.all() for key in element.attributes if key.startswith("on")]
        written.encode("utf-8")


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=4), ids=st.lists(st.integers(0, 3200), max_size=40))
def test_a_page_is_balanced_and_keeps_every_token_whatever_was_written(
    texts: list[str], ids: list[int], vocabularies: Vocabularies
) -> None:
    turns = [
        turn(f"t{n}", text[:9], n, text, ids=ids, tokenizer="words", tool_calls=(call(output=text),))
        for n, text in enumerate(texts)
    ]
    page = parse(episode_page(show(episode(turns, output=texts[0]), vocabularies)))
    pieces = vocabularies.pieces(turns[0], turns[0].sampled_ids)
    for found in tokens(page):
        assert [token.text for token in found] == [visible(piece.text) for piece in pieces]


def test_a_page_asks_for_nothing_and_lets_nothing_be_asked_for() -> None:
    given = show(episode([turn("x", "a", 0, "t", tool_calls=(call(output="see https://example.org/x.png"),))]))
    for written in (episode_page(given), list_page("run", [given]), diff_page(given, given)):
        page = parse(written)
        (policy,) = [each for each in page.all("meta") if each.attributes.get("http-equiv") == "Content-Security-Policy"]
        assert (policy.attributes["content"] or "").startswith("default-src 'none'; style-src 'sha256-")
        assert not [
            each for each in page.all() if {"src", "srcset", "data", "action", "poster", "style"} & each.attributes.keys()
        ]
        assert all((each.attributes["href"] or "").startswith("#") for each in page.all() if "href" in each.attributes)
        style = next(page.all("style")).text
        assert "url(" not in style
        assert "@import" not in style


# --- the tree -----------------------------------------------------------------------------------------------------------------
def test_branches_are_folded_together_and_linked_from_the_timeline() -> None:
    turns = [turn("r", "a", 0, "x"), turn("l", "a", 1, "x", "r"), turn("l2", "a", 2, "x", "l"), turn("m", "b", 1, "x", "r")]
    page = parse(episode_page(show(episode(turns))))
    branches = list(page.all("details", "branch"))
    assert [len(list(branch.all("details", "turn"))) for branch in branches] == [2, 1]
    anchors = [each.attributes["id"] for each in page.all("details", "turn")]
    assert len(set(anchors)) == 4
    assert {each.attributes["href"] for each in page.all("a")} == {f"#{anchor}" for anchor in anchors}
    assert [each.text for each in page.all("text", "lane")] == ["a", "b"]


def test_a_very_deep_tree_nests_no_deeper_than_browsers_do() -> None:
    turns = [turn("t0", "a", 0, "x")]
    for n in range(1, 300):
        turns += [turn(f"t{n}", "a", n, "x", f"t{n - 1}"), turn(f"u{n}", "a", n, "x", f"t{n - 1}")]
    page = parse(episode_page(show(episode(turns))))
    assert len(list(page.all("details", "turn"))) == len(turns)

    def depth(element: Element) -> int:
        return 1 + max((depth(each) for each in element.inner if isinstance(each, Element)), default=0)

    assert depth(page) < 50


# --- size ---------------------------------------------------------------------------------------------------------------------
def test_a_page_of_ten_thousand_tokens_is_below_three_megabytes(vocabularies: Vocabularies) -> None:
    ids = np.random.default_rng(0).integers(0, 3200, 1000)
    entropy = {"entropy": Column("entropy", np.linspace(0, 1, 1000, dtype=np.float32))}
    turns = [turn(f"t{n}", "a", n, "t", ids=ids, tokenizer="words", columns=entropy) for n in range(10)]
    given = show(episode(turns), vocabularies, **{each.id: np.linspace(-1, 1, 1000) for each in turns})
    assert len(episode_page(given).encode()) < 3_000_000


# --- several ------------------------------------------------------------------------------------------------------------------
def test_a_list_has_a_row_and_a_folded_tree_for_each_episode() -> None:
    one = episode([turn("x", "a", 0, "t")])
    page = parse(list_page("run", [show(one), show(replace(one, id="g8.0", status="failed"))], left_out=5))
    rows = [[cell.text for cell in row.all("td")] for row in page.all("tr")][1:]
    assert [row[:4] for row in rows] == [["g7.0", "train", "3", "done"], ["g8.0", "train", "3", "failed"]]
    folded = list(page.all("details", "episode"))
    assert [each.attributes["id"] for each in folded] == ["e0", "e1"]
    assert not any("open" in each.attributes for each in folded)
    assert len({each.attributes["id"] for each in page.all("details", "turn")}) == 2
    assert "the last 2 of 7" in page.text


def test_a_diff_marks_what_only_one_has(vocabularies: Vocabularies) -> None:
    encode = vocabularies.tokenizers["words"].encode
    left, right = ([turn("x", "a", 0, text, ids=encode(text).ids, tokenizer="words", tool_calls=(call(output=text),))]
                   for text in ("capital of Norway?", "capital of Peru?"))  # fmt: skip
    page = parse(diff_page(show(episode(left), vocabularies), show(episode(right, id="g7.1", output="Lima"), vocabularies)))
    marked = [
        "".join(token.text for token in turn if "d" in (token.attributes["class"] or "").split()) for turn in tokens(page)
    ]
    assert [each.strip() for each in marked] == ["Norway", "Peru"]
    assert len(list(page.all("code", "d"))) == 2
    facts = {row.inner[0].text: [cell.attributes.get("class") for cell in row.all("td")] for row in page.all("tr")}
    assert facts["task"] == [None, None]
    assert facts["output"] == ["d", "d"]
    assert next(page.all("input")).attributes["value"] == "difference"


def test_equal_episodes_differ_in_nothing() -> None:
    given = show(episode([turn("x", "a", 0, "t", tool_calls=(call(),)), turn("y", "a", 1, "u", "x")]), x=1.0)
    page = parse(diff_page(given, given))
    assert [each.text for each in page.all("p", "same")] == ["equal", "equal"]
    assert len(list(page.all("", "d"))) == 1  # the legend


def test_turns_are_aligned_by_text_then_by_agent() -> None:
    left = episode(
        [turn("a0", "a", 0, "same"), turn("a1", "a", 1, "left"), turn("b0", "b", 0, "own"), turn("a2", "a", 2, "end")]
    )
    right = episode([turn("x0", "a", 0, "same"), turn("x1", "a", 1, "right"), turn("x2", "a", 2, "end")])
    found = [(pair.left and pair.left.id, pair.right and pair.right.id) for pair in align(left, right)]
    assert found == [("a0", "x0"), ("a1", "x1"), ("b0", None), ("a2", "x2")]


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abc"), max_size=30))
def test_what_is_not_marked_is_common_to_both_in_order(left: list[str], right: list[str]) -> None:
    only_left, only_right = differing(left, right)
    kept = [
        [text for at, text in enumerate(texts) if at not in only] for texts, only in ((left, only_left), (right, only_right))
    ]
    assert kept[0] == kept[1]


def test_the_page_s_files_are_packaged() -> None:
    from importlib.resources import files

    assert {"page.css", "page.js"} <= {Path(str(each)).name for each in files("agentrl.view.html").iterdir()}
