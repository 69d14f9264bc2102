"""Reward transforms: what they may change, and GTPO's shaping."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.config import apply_settings, difference, experiment_json
from agentrl.credit import GRPO, assign
from agentrl.episode import Episode, Group, Reward, ToolCall
from agentrl.errors import UserError
from agentrl.transforms import CodeSimilarity, Cosine, TokenJaccard, transformed
from tests.credit.conftest import make_chain


def calling(name: str, outcome: float, *calls: tuple[str, dict[str, Any]], status: str = "done") -> Episode:
    """An episode of a turn for each call."""
    made = make_chain(name, "g", [0.0] * max(1, len(calls)), outcome=outcome, status=status)
    turns = [
        replace(turn, tool_calls=(ToolCall(tool, arguments, "ok", "", 0.0, 0.0),))
        for turn, (tool, arguments) in zip(made.turns, calls, strict=False)
    ]
    return replace(made, turns=tuple(turns) or made.turns)


def code(name: str, outcome: float, *texts: str, **fields: Any) -> Episode:
    return calling(name, outcome, *(("python", {"code": text}) for text in texts), **fields)


def group(*episodes: Episode) -> Group:
    return Group("g", None, episodes, len(episodes))


def rewards(shaped: Group) -> list[float]:
    return [episode.reward for episode in shaped.episodes]


# --- GTPO's shaping -------------------------------------------------------------------------------------------------------
def test_a_wrong_rollout_gets_alpha_times_its_mean_similarity_to_the_correct_ones():
    shape = CodeSimilarity(alpha=0.5, similarity=lambda a, b: {"one": 0.2, "two": 0.8}[b])
    assert rewards(shape(group(code("a", 1, "one"), code("b", 1, "two"), code("c", 0, "mine")))) == pytest.approx([1, 1, 0.25])


def test_code_is_what_all_tool_calls_of_all_turns_were_given():
    episode = calling("a", 0, ("python", {"code": "x = 1", "seconds": 3}), ("search", {"query": "lima"}))
    assert CodeSimilarity().code(episode) == "x = 1\n3\nlima"
    assert CodeSimilarity(tool="python").code(episode) == "x = 1\n3"
    assert CodeSimilarity(tool="python", argument="code").code(episode) == "x = 1"


@pytest.mark.parametrize(
    ("episodes", "why"),
    [
        ((code("a", 0, "x"), code("b", 0, "x")), "no member is correct"),
        ((code("a", 1, "x"), code("b", 0)), "it has no code"),
        ((code("a", 1), code("b", 0, "x")), "the correct one has no code"),
        ((code("a", 1, "x"), code("b", 0, "x", status="failed")), "it is lost"),
        ((code("a", 1, "x", status="failed"), code("b", 0, "x")), "the correct one is lost"),
    ],
)
def test_nothing_is_given_where(episodes, why):
    before = group(*episodes)
    assert rewards(CodeSimilarity()(before)) == rewards(before), why


def test_a_similarity_below_zero_counts_as_zero():
    assert rewards(CodeSimilarity(similarity=lambda a, b: -0.7)(group(code("a", 1, "x"), code("b", 0, "y")))) == [1.0, 0.0]


def test_equal_code_is_given_alpha_and_different_code_less():
    shaped = CodeSimilarity()(group(code("a", 1, "print(1)"), code("b", 0, "print(1)"), code("c", 0, "print(2)")))
    assert rewards(shaped) == pytest.approx([1.0, 0.5, 0.5 * 3 / 5])


def test_an_embedder_may_be_given():
    vectors = {"x": (1.0, 0.0), "y": (1.0, 1.0), "0": (0.0, 0.0)}
    cosine = Cosine(vectors.__getitem__)
    assert cosine("x", "y") == pytest.approx(2**-0.5) and cosine("x", "0") == 0.0
    shaped = CodeSimilarity(similarity=cosine)(group(code("a", 1, "x"), code("b", 0, "y")))
    assert rewards(shaped)[1] == pytest.approx(0.5 * 2**-0.5)


@given(st.text(), st.text())
def test_token_jaccard_is_symmetric_within_zero_and_one_and_one_for_equal_texts(a, b):
    alike = TokenJaccard()
    assert 0.0 <= alike(a, b) == alike(b, a) <= 1.0
    assert alike(a, a) == (1.0 if a.split() else alike(a, a))


@given(st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from("abc"), max_size=3)), min_size=1, max_size=6))
def test_shaping_never_lowers_a_reward_nor_reaches_a_correct_one(members):
    before = group(*(code(f"e{n}", float(right), *texts) for n, (right, texts) in enumerate(members)))
    for old, new in zip(rewards(before), rewards(transformed([before], [CodeSimilarity()])[0]), strict=True):
        assert old <= new <= max(old, 0.5)


# --- what any transform may do --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mine:
    give: Any

    def __call__(self, group: Group) -> Any:
        return self.give(group)


def first(change: Any) -> Any:
    """Changes the first episode."""
    return lambda g: replace(g, episodes=(change(g.episodes[0]), *g.episodes[1:]))


def turned(change: Any) -> Any:
    return first(lambda e: replace(e, turns=(change(e.turns[0]), *e.turns[1:])))


BAD = {
    "raises": (lambda g: {}["x"], "transform Mine failed on group g at "),
    "no group": (lambda g: g.episodes, "transform Mine gave a tuple for group g, wanted the Group"),
    "another group": (lambda g: replace(g, id="h"), "group g (of 2) came back as h (of 2)"),
    "fewer episodes": (lambda g: replace(g, episodes=g.episodes[:1]), "came back with other episodes (1 for 2)"),
    "another order": (lambda g: replace(g, episodes=g.episodes[::-1]), "came back with other episodes (b for a)"),
    "another status": (first(lambda e: replace(e, status="failed")), "episode a came back with another status"),
    "fewer turns": (first(lambda e: replace(e, turns=())), "episode a came back with another turns"),
    "another turn": (turned(lambda t: replace(t, valid=False)), "turn 0 of episode a came back with another valid"),
    "other tokens": (turned(lambda t: replace(t, sampled_ids=t.sampled_ids + 1)), "came back with another sampled_ids"),
    "a nan": (first(lambda e: replace(e, rewards=(Reward("r", np.nan),))), "reward 'r' of episode a is nan"),
    "a turn's inf": (turned(lambda t: replace(t, rewards=(Reward("r", np.inf, "0"),))), "'r' of turn 0 of episode a is inf"),
}


@pytest.mark.parametrize(("give", "said"), BAD.values(), ids=BAD)
def test_what_a_transform_must_not_do_is_named(give, said):
    with pytest.raises(UserError) as raised:
        assign([group(code("a", 1, "x"), code("b", 0, "y"))], GRPO(), [Mine(give)])
    assert str(raised.value).startswith("transform Mine") and said in str(raised.value) and "\n" not in str(raised.value)


def test_rewards_of_episodes_and_turns_may_change_and_credit_follows():
    doubled = Mine(first(lambda e: replace(e, rewards=(Reward("outcome", 5.0),))))
    own = Mine(turned(lambda t: replace(t, rewards=(Reward("own", -3.0, "0"),))))
    batch, credit = assign([group(code("a", 1, "x"), code("b", 0, "y"))], GRPO(std=None), [doubled, own])
    assert batch.turns.outcome.tolist() == [5.0, 0.0] and batch.turns.reward.tolist() == [-3.0, 0.0]
    assert credit.advantage.tolist() == [1.0, -1.0]


def test_transforms_are_set_by_name_and_number():
    from agentrl import Agent, Experiment, Policy, workflow

    @workflow(Agent("a"))
    async def answer(task: Any, team: Any) -> str:
        return ""

    plain = Experiment(answer, Policy("p"))
    assert plain.transforms == ()
    with pytest.raises(UserError, match=r"transforms are several, got CodeSimilarity\("):
        replace(plain, transforms=CodeSimilarity())  # type: ignore[arg-type]
    one = apply_settings(plain, ["transforms=code_similarity", "transforms.0.alpha=0.3", "transforms.0.tool=python"])
    assert one.transforms == (CodeSimilarity(alpha=0.3, tool="python"),)
    assert len(apply_settings(plain, ["transforms=code_similarity,code_similarity"]).transforms) == 2
    assert apply_settings(one, ["transforms="]).transforms == ()
    older = {name: value for name, value in experiment_json(plain).items() if name != "transforms"}
    assert difference(older, experiment_json(plain)) == [], "a run of a version without transforms goes on"
    assert len(difference(older, experiment_json(one))) == 1
    for setting, said in [
        ("transforms=nowhere", "there is no 'nowhere'; there is "),
        ("transforms.1.alpha=0.3", "transforms has 1 values; give transforms.N.field=value with N from 0 to 0"),
        ("transforms.alpha=0.3", "transforms has 1 values"),
        ("transforms.0.beta=0.3", "CodeSimilarity has no field 'beta'"),
    ]:
        with pytest.raises(UserError, match=said):
            apply_settings(one, [setting])


@pytest.mark.parametrize(
    ("page", "what", "given"), [("adding.md", "class Shorter", [0.99, -0.01]), ("credit.md", "def embed", [1.0, 0.5])]
)
def test_the_examples_in_the_docs_work(page, what, given):
    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / page).read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if what in block)
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec", dont_inherit=True), names)
    shape = names["Shorter"]() if "Shorter" in names else CodeSimilarity(similarity=Cosine(names["embed"]))
    assert rewards(transformed([group(code("a", 1, "abc"), code("b", 0, "abc"))], [shape])[0]) == pytest.approx(given)
