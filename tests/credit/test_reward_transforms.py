"""OTC, AdaCoT, MGPO's reward, MPO's rubric versions and ARPO's replay."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import GRPO, assign
from agentrl.episode import Group, Reward, ToolCall
from agentrl.errors import UserError
from agentrl.learning.rows import to_rows
from agentrl.transforms import OTC, AdaCoT, BinaryAnswer, Replay, RubricVersions, Successes, transformed
from agentrl.transforms.otc import efficiency
from tests.credit.conftest import make_chain

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def calling(name: str, calls: int, outcome: float, **fields: Any) -> Any:
    """An episode of two turns, all tool calls but one in the first; every other call failed."""
    episode = make_chain(name, "g", [0.0, 0.0], outcome=outcome, **fields)
    made = [ToolCall("search", {}, "error" if i % 2 else "ok", "", 0.0, 0.0) for i in range(calls)]
    split = (tuple(made[1:]), tuple(made[:1]))
    turns = tuple(replace(turn, tool_calls=part) for turn, part in zip(episode.turns, split, strict=True))
    return replace(episode, turns=turns)


def group_of(*members: Any, task: Any = None) -> Group:
    return Group("g", task, members, len(members))


def rewards(groups: Any) -> list[float]:
    return [episode.reward for episode in groups[0].episodes]


def test_otc_gives_the_worked_numbers():
    data = golden("otc")
    members = [calling(f"e{i}", case["m"], float(case["ok"])) for i, case in enumerate(data["inputs"]["group"])]
    transform = OTC(alpha=data["params"]["alpha"], c=data["params"]["c"])
    batch, credit = assign([group_of(*members)], GRPO(), [transform])
    np.testing.assert_allclose([e.reward for e in batch.episodes], data["expected_reward"], atol=1e-6)
    np.testing.assert_allclose(np.asarray(credit.advantage)[::2], data["expected_grpo_adv"], atol=1e-6)


def test_otcs_efficiency_is_the_papers_table():
    data = golden("otc")
    for case, wanted in data["expected_table"].items():
        m, n = (int(part.partition("=")[2]) for part in case.split(","))
        assert efficiency(m, n, 4) == pytest.approx(wanted, abs=1e-6), case
    got = [efficiency(case["m"], data["expected_n"], 4) for case in data["inputs"]["group"]]
    np.testing.assert_allclose(got, data["expected_r_tool"], atol=1e-6)


def test_otc_against_the_limit_is_the_ppo_form():
    expected = golden("otc")["expected_ppo"]
    members = [calling(f"e{m}", int(m), 1.0) for m in expected]
    assert rewards(transformed([group_of(*members)], [OTC(c=4, against="limit")])) == pytest.approx(
        [*expected.values()], abs=1e-6
    )


def test_otc_leaves_a_group_without_a_correct_member_and_what_is_not_positive():
    failed = group_of(calling("a", 3, 0.5), calling("b", 1, 0.0))
    assert transformed([failed], [OTC()]) == [failed]
    mixed = group_of(calling("a", 1, 1.0), calling("b", 3, -1.0), calling("c", 3, 0.5), calling("d", 1, 1.0, status="failed"))
    assert rewards(transformed([mixed], [OTC(alpha=2.0)])) == pytest.approx([2.0, -1.0, 0.5 * 2**0.5, 1.0])


def test_otc_takes_n_from_finished_members_only():
    members = (calling("a", 2, 1.0), calling("b", 1, 1.0, status="failed"))
    assert rewards(transformed([group_of(*members)], [OTC()])) == [1.0, 1.0]


def test_otc_refuses_a_limit_below_1():
    with pytest.raises(UserError, match="needs c >= 1, the most tool calls of the setting, got 0"):
        OTC(c=0)


THOUGHT, NONE = "<think>why</think>42", "<think> \n</think>42"


def told(text: str, outcome: float, valid: bool = True) -> Any:
    episode = make_chain("e", "g", [0.0], outcome=outcome)
    return replace(episode, turns=(replace(episode.turns[0], text=text, valid=valid),))


def test_adacot_gives_the_worked_numbers():
    data = golden("adacot")
    transform = AdaCoT(missed=data["params"]["a1"], needless=data["params"]["a2"], broken=data["params"]["gamma"])
    for (base, needed, used), wanted in zip(data["inputs"]["cases"], data["expected_rewards"], strict=True):
        group = group_of(told(THOUGHT if used else NONE, base), task={"needs_thought": needed})
        assert rewards(transformed([group], [transform])) == pytest.approx([wanted], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "thinks"),
    [
        (THOUGHT, True),
        (NONE, False),
        ("42", False),
        ("<think>cut off", True),
        ("opened by the template</think>42", True),
        ("\n</think>42", False),
    ],
)
def test_adacot_knows_a_thought(text, thinks):
    group = group_of(told(text, 0.0), task={"needs_thought": False})
    assert rewards(transformed([group], [AdaCoT()])) == [-0.3 if thinks else 0.0]


def test_adacot_reads_a_field_of_the_task_and_without_a_label_only_the_format():
    @dataclass
    class Task:
        hard: bool | None = None

    broken = told(NONE, 1.0, valid=False)
    assert rewards(transformed([group_of(broken, task=Task())], [AdaCoT(label="hard")])) == [0.0]
    assert rewards(transformed([group_of(broken, task=Task(True))], [AdaCoT(label="hard")])) == [pytest.approx(-0.1)]
    assert rewards(transformed([group_of(told(THOUGHT, 1.0))], [AdaCoT()])) == [1.0]


def test_adacot_refuses_a_label_that_is_no_label():
    with pytest.raises(UserError, match="the task's needs_thought is 'yes'; say whether it needs thought with true or false"):
        transformed([group_of(told(NONE, 1.0), task={"needs_thought": "yes"})], [AdaCoT()])


def test_mgpo_gives_the_worked_advantages_and_trains_the_models_tokens_of_both_turns(turn):
    data = golden("mgpo")
    context, sampled = data["inputs"]["turns"][::2], data["inputs"]["turns"][1::2]
    members = []
    for i, reward in enumerate(data["inputs"]["rewards"]):
        turns = [
            turn(
                str(t), t, sampled=model["tokens"], context_ids=np.arange(user["tokens"], dtype=np.int32),
                rewards=(Reward("box", 0.7, turn=str(t)),),
            )
            for t, (user, model) in enumerate(zip(context, sampled, strict=True))
        ]  # fmt: skip
        members.append(replace(make_chain(f"e{i}", "g", [], outcome=float(reward)), turns=tuple(turns)))
    batch, credit = assign([group_of(*members)], GRPO(), [BinaryAnswer()])
    np.testing.assert_allclose(np.asarray(credit.advantage)[::2], data["expected"]["advantage"], atol=1e-6)
    mask: list[int] = []
    for own in batch.episodes[0].turns:
        trained = any(t.turn is own for row in to_rows(batch, credit) for t in row.trained)
        mask += [0] * len(own.context_ids) + [int(trained)] * len(own.sampled_ids)
    assert mask == data["expected"]["loss_mask"]


def test_a_binary_answer_is_right_from_the_threshold_on():
    members = [make_chain(f"e{i}", "g", [5.0], outcome=r) for i, r in enumerate([0.4, 0.5])]
    lost = make_chain("lost", "g", [5.0], outcome=1.0, status="failed")
    (group,) = transformed([group_of(*members, lost)], [BinaryAnswer(correct=0.5)])
    assert [e.reward for e in group.episodes] == [0.0, 1.0, 1.0] and group.episodes[2] is lost
    assert all(not turn.rewards for e in group.finished for turn in e.turns)


def judged(name: str, version: int | None, score: float, **fields: Any) -> Any:
    given = (Reward(f"rubric@{version}", score),) if version is not None else ()
    return replace(make_chain(name, "g", [0.0], **fields), rewards=(Reward("format", 0.5), *given))


def test_scores_of_one_version_are_left_alone():
    group = group_of(judged("a", 3, 7.0), judged("b", 3, 2.0))
    assert transformed([group], [RubricVersions()]) == [group]


def test_scores_of_several_versions_are_each_held_against_their_own():
    members = [judged("a", 1, 7.0), judged("b", 1, 5.0), judged("c", 2, 30.0), judged("d", 2, 40.0), judged("e", 3, 99.0)]
    groups = transformed([group_of(*members, judged("lost", 9, 1.0, status="failed"))], [RubricVersions()])
    assert rewards(groups) == [1.5, -0.5, -4.5, 5.5, 0.5, 1.5]


def test_an_episode_that_was_not_judged_is_compared_in_nothing_but_the_rest():
    assert rewards(transformed([group_of(judged("a", 1, 7.0), judged("b", None, 0.0))], [RubricVersions()])) == [0.5, 0.5]


def test_several_versions_can_be_refused():
    group = group_of(judged("a", 1, 7.0), judged("b", 2, 7.0))
    with pytest.raises(UserError, match=r"on group g.*: its scores are of several rubric versions \(rubric@1, rubric@2\)"):
        transformed([group], [RubricVersions(mixed="refuse")])


def filled(scores: list[float], task: Any = None) -> Successes:
    buffer = Successes()
    buffer.add(task, [make_chain(f"old{i}", "then", [0.0], outcome=r) for i, r in enumerate(scores)])
    return buffer


@pytest.mark.parametrize("case", range(4))
def test_replay_gives_the_authors_numbers(case):
    data = golden("arpo_gui_replay")
    inputs, wanted = data["inputs"]["cases"][case], data["expected"][case]
    members = [make_chain(f"e{i}", "g", [0.0], outcome=float(r)) for i, r in enumerate(inputs["rewards"])]
    params = data["params"]
    transform = Replay(params["std_thr"], params["mean_thr"], params["pos_threshold"], successes=filled(inputs["buffer"]))
    batch, credit = assign([group_of(*members)], GRPO(), [transform])
    assert [episode.reward for episode in batch.episodes] == wanted["rewards_after"]
    assert (batch.episodes[0].source == "replay") is wanted["used_replay"]
    np.testing.assert_allclose(credit.advantage, wanted["official"], atol=1e-6)


def failing(name: str = "g", task: Any = None) -> Group:
    return Group(name, task, tuple(make_chain(f"{name}{i}", name, [0.0]) for i in range(3)), 3)


def test_a_success_comes_back_whole_under_its_own_id():
    buffer = filled([1.0])
    (group,) = transformed([failing()], [Replay(successes=buffer)])
    (stored,) = buffer.of(None)
    assert group.episodes[0] == replace(stored, source="replay")
    assert group.episodes[0].turns is stored.turns and [e.id for e in group.episodes[1:]] == ["g1", "g2"]


def test_successes_are_kept_for_groups_of_the_same_task_and_a_replayed_one_is_not_kept_twice():
    replay = Replay()
    won = Group("g0", {"q": 1}, (make_chain("won", "g0", [0.0], outcome=1.0), make_chain("lost", "g0", [0.0])), 2)
    groups = transformed([won, failing("g1", {"q": 1}), failing("g2", {"q": 2}), failing("g3", {"q": 1})], [replay])
    assert [group.episodes[0].source for group in groups] == ["policy", "replay", "policy", "replay"]
    assert [episode.id for episode in replay.successes.of({"q": 1})] == ["won"]
    batch, _ = assign(groups[1::2], GRPO())
    assert [episode.id for episode in batch.episodes].count("won") == 2


def test_the_oldest_success_gives_way():
    buffer = Successes(size=2)
    buffer.add("t", [make_chain(name, "g", []) for name in "abcb"])
    assert [episode.id for episode in buffer.of("t")] == ["b", "c"]
    assert repr(buffer) == "Successes(size=2)"


def test_an_evaluation_apart_from_the_format_reward_decides():
    tidy = [replace(e, rewards=(Reward("eval", 0.0), Reward("format", 0.5))) for e in failing().episodes]
    untouched = transformed([group_of(*tidy)], [Replay(successes=filled([1.0]))])
    replayed = transformed([group_of(*tidy)], [Replay(evaluation="eval", successes=filled([1.0]))])
    assert untouched[0].episodes[0].source == "policy" and replayed[0].episodes[0].source == "replay"


def test_a_lost_member_is_not_what_gives_its_place_and_a_lost_group_gets_nothing():
    lost, *rest = failing().episodes
    lost = replace(lost, status="failed")
    (group,) = transformed([group_of(lost, *rest)], [Replay(successes=filled([1.0]))])
    assert [episode.source for episode in group.episodes] == ["policy", "replay", "policy"]
    (empty,) = transformed([group_of(lost)], [Replay(successes=filled([1.0]))])
    assert empty.episodes == (lost,)


def test_later_transforms_see_the_replayed_success():
    success = replace(make_chain("old", "then", [0.0], outcome=1.0), rewards=(Reward("answer", 4.0),))
    buffer = Successes()
    buffer.add(None, [success])
    (group,) = transformed([failing()], [Replay(successes=buffer), BinaryAnswer()])
    assert [e.reward for e in group.episodes] == [1.0, 0.0, 0.0]


def test_only_a_replayed_episode_may_take_a_members_place():
    class Swaps:
        def __call__(self, group):
            return replace(group, episodes=(make_chain("other", "g", [0.0]), *group.episodes[1:]))

    with pytest.raises(UserError, match=r"Swaps: group g came back with other episodes \(other for g0\)"):
        transformed([failing()], [Swaps()])
