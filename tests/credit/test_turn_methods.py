"""SALT, SUPO, AT-GRPO, MasHost's HRPO, THOR and AdaCoT's masking."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import (
    ATGRPO,
    GAE,
    GRPO,
    RLOO,
    SALT,
    SUPO,
    THOR,
    DecisionMasked,
    MasHostHRPO,
    Needs,
    assign,
    to_batch,
)
from agentrl.episode import Candidate, Group, Parent, Reward, State, ToolCall
from agentrl.errors import UserError
from agentrl.learning.rows import to_rows

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def by_episode(values: Any, batch: Any) -> list[list[float]]:
    return [np.asarray(values)[batch.turns.episode == n].tolist() for n in range(len(batch.episodes))]


class Outcome:
    """An estimator that gives each turn its episode's outcome: SALT's worked case begins from given advantages."""

    needs = Needs()

    def __call__(self, batch):
        from agentrl.credit import Credit

        return Credit(batch.turns, batch.turns.outcome.copy())


def walk(chain, name, adv, steps, **fields):
    """An episode whose turns take these (state, action, next state)."""
    episode = chain(name, "g", [0.0] * len(steps), outcome=adv)
    taken = zip(episode.turns, steps, strict=True)
    turns = tuple(replace(turn, state=State(before=s, action=a, after=after)) for turn, (s, a, after) in taken)
    return replace(episode, turns=turns, **fields)


def test_salt_gives_the_worked_numbers(chain, grouped):
    data = golden("salt")
    members = [walk(chain, t["id"], t["adv"], t["steps"]) for t in data["inputs"]["trajectories"]]
    batch = to_batch(grouped(members))
    credit = SALT(base=Outcome())(batch)
    for got, wanted in zip(by_episode(credit.advantage, batch), data["expected"].values(), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert credit.metrics["credit/merged"] == pytest.approx(5 / 9)


@pytest.mark.parametrize("base", [GRPO(), RLOO()])
def test_salt_without_a_shared_step_is_its_base(chain, grouped, base):
    members = [
        walk(chain, name, r, [("s", name, f"{name}1"), (f"{name}1", "x", "end")]) for name, r in (("a", 1.0), ("b", 0.0))
    ]
    batch = to_batch(grouped(members))
    assert SALT(base=base)(batch).advantage.tolist() == base(batch).advantage.tolist()


def test_salt_gives_a_step_that_all_took_nothing(chain, grouped):
    members = [walk(chain, f"e{i}", r, [("s", "go", "t")]) for i, r in enumerate([1.0, 0.0, 0.0])]
    np.testing.assert_allclose(SALT()(to_batch(grouped(members))).advantage, 0.0, atol=1e-12)


def test_salt_counts_an_episode_once_in_a_step_that_it_took_twice(chain, grouped):
    loop = ("s", "stay", "s")
    batch = to_batch(grouped([walk(chain, "a", 1.0, [loop, loop]), walk(chain, "b", -0.5, [loop])]))
    assert SALT(base=Outcome())(batch).advantage.tolist() == [0.25, 0.25, 0.25]
    alone = to_batch(grouped([walk(chain, "a", 1.0, [loop, loop])]))
    assert SALT(base=Outcome())(alone).metrics["credit/merged"] == 0.0


def test_salt_with_history_keeps_apart_what_came_by_other_ways(chain, grouped):
    members = [walk(chain, "a", 1.0, [("x", "go", "m"), ("m", "take", "end")])]
    members.append(walk(chain, "b", 0.0, [("y", "go", "m"), ("m", "take", "end")]))
    batch = to_batch(grouped(members))
    assert SALT(base=Outcome())(batch).advantage.tolist() == [1.0, 0.5, 0.0, 0.5]
    assert SALT(base=Outcome(), history=2)(batch).advantage.tolist() == [1.0, 1.0, 0.0, 0.0]


class Tokens:
    """A base that gives every token a number of its own."""

    needs = Needs()

    def __call__(self, batch):
        from agentrl.credit import Credit

        return Credit(batch.turns, [np.zeros(len(turn.sampled_ids)) for turn in batch.turns.turn])


def test_salt_keeps_the_mask_of_its_base(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [1.0, 0.0]), chain("b", "g", [0.0])]))
    masks = SALT(base=DecisionMasked())(batch).mask
    assert masks is not None and [mask.tolist() for mask in masks] == [[False, True]] * 3


@pytest.mark.parametrize("gone", ["before", "action", "after"])
def test_salt_merges_no_step_that_lacks_a_key(chain, grouped, gone):
    step = {"before": "s", "action": "go", "after": "t", gone: ""}
    members = [walk(chain, name, r, [(step["before"], step["action"], step["after"])]) for name, r in (("a", 1.0), ("b", 0.0))]
    assert SALT(base=Outcome())(to_batch(grouped(members))).advantage.tolist() == [1.0, 0.0]


def test_salt_refuses_a_base_of_tokens_and_no_history(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [1.0])]))
    with pytest.raises(UserError, match=r"SALT\(base=Tokens\): the base must give one number a turn; take GRPO or RLOO"):
        SALT(base=Tokens())(batch)
    with pytest.raises(UserError, match="history >= 1"):
        SALT(history=0)


@pytest.fixture
def supo_groups(chain, turn):
    """The golden file's rollouts: `a` has two summaries, `c` one, and `c` is overlong; each stretch is a turn or two."""

    def stretches(name, count, reward, **fields):
        kinds = ["summary"] * (count - 1) + ["act"]
        turns = [turn(str(i), i, kind=kind) for i, kind in enumerate(kinds)]
        return replace(chain(name, "g", [], outcome=reward), turns=tuple(turns), **fields)

    members = (stretches("a", 3, 1.0), stretches("b", 1, 0.0), stretches("c", 2, 0.0, status="overlong"))
    return [Group("g", None, members, 3)]


def test_supo_gives_the_worked_numbers_and_does_not_train_what_is_overlong(supo_groups):
    data = golden("supo")
    batch, credit = assign(supo_groups, SUPO())
    np.testing.assert_allclose(credit.advantage, data["expected"], atol=1e-6)
    rows = to_rows(batch, credit)
    trained = [float(any(row.episode.id == r["rollout"] for row in rows)) for r in data["inputs"]["rows"]]
    assert trained == data["expected_loss_weight"] and len(rows) == 4


def test_supo_leaves_out_the_turn_that_a_summary_was_asked_for_instead_of(chain, turn):
    turns = (
        turn("0", 0),
        turn("1", 1, parent=Parent("0", 5)),  # did not fit: discarded
        turn("2", 2, kind="summary", parent=Parent("0", 5)),
        turn("3", 3),
    )
    episode = replace(chain("a", "g", [], outcome=1.0), turns=turns)
    batch, credit = assign([Group("g", None, (episode, chain("b", "g", [0.0])), 2)], SUPO())
    assert credit.weight is not None and credit.weight.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]
    trained = {trained.turn.id for row in to_rows(batch, credit) if row.episode.id == "a" for trained in row.trained}
    assert trained == {"0", "2", "3"}


def test_supo_keeps_a_turn_that_its_summary_goes_on_from(chain, turn):
    turns = (turn("0", 0), turn("1", 1, kind="summary", parent=Parent("0", 5)))
    batch = to_batch([Group("g", None, (replace(chain("a", "g", []), turns=turns),), 1)])
    assert SUPO()(batch).weight.tolist() == [1.0, 1.0]


def test_supo_without_summaries_is_grpo(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0, 1.0]), chain("b", "g", [0.5]), chain("c", "g", [0.0])]))
    assert SUPO()(batch).advantage.tolist() == GRPO()(batch).advantage.tolist()


def test_at_grpo_gives_the_authors_numbers(chain, turn):
    """As they record: rollouts of one environment whose turns begin in one state."""
    data = golden("at_grpo")
    rows = data["inputs"]["rows"]
    groups, places = [], {}
    for env in (0, 1):
        members = []
        for rollout in dict.fromkeys(row["rollout"] for row in rows if row["env"] == env):
            mine = [(i, row) for i, row in enumerate(rows) if row["rollout"] == rollout]
            turns = [
                turn(
                    str(i), row["turn"], f"agent{row['agent']}", state=State(before=f"{row['turn']}|{row['agent']}"),
                    rewards=(Reward("r", row["reward"], turn=str(i)),),
                )
                for i, row in mine
            ]  # fmt: skip
            members.append(replace(chain(f"r{rollout}", f"env{env}", []), turns=tuple(turns)))
        groups.append(Group(f"env{env}", None, tuple(members), 2))
    batch, credit = assign(groups, ATGRPO())
    places = {int(t.id): a for t, a in zip(batch.turns.turn, credit.advantage, strict=True)}
    got = [places[i] for i in range(len(rows))]
    np.testing.assert_allclose(got, data["expected"], atol=2e-6)
    np.testing.assert_allclose(got, data["official"], atol=2e-6)
    assert credit.metrics["credit/compared"] == 1.0


def test_at_grpo_compares_the_candidates_of_one_place_by_team_and_local_reward(chain, turn):
    def drawn(name, index, of, team, local):
        rewards = (Reward("t", team, turn=name), Reward("l", local, turn=name, agent="a"))
        return turn(name, index, candidate=Candidate(of, index % 2, index % 2 == 0), rewards=rewards)

    turns = (
        drawn("0", 0, "x", 1.0, 0.0),
        drawn("1", 1, "x", 0.0, 0.5),
        drawn("2", 2, "y", 0.2, 0.0),
        drawn("3", 3, "y", 0.0, 0.4),
    )
    other = tuple(replace(turn, rewards=(*turn.rewards, Reward("t", 3.0, turn=turn.id))) for turn in turns)
    members = tuple(replace(chain(name, "g", [], outcome=7.0), turns=own) for name, own in (("a", turns), ("b", other)))
    batch = to_batch([Group("g", None, members, 2)])
    half = [(0.5 - 0.5) / 2, 0.0, (0.1 - 0.4) / 2, (0.4 - 0.1) / 2]
    np.testing.assert_allclose(ATGRPO(alpha=0.5, std=None)(batch).advantage, half * 2, atol=1e-12)
    full = [0.25, -0.25, -0.1, 0.1]
    np.testing.assert_allclose(ATGRPO(std=None)(batch).advantage, full * 2, atol=1e-12)


def test_at_grpo_gives_a_turn_of_its_own_state_nothing_and_others_the_teams_outcome(chain, grouped):
    members = [chain("a", "g", [0.0, 0.0], outcome=1.0, states=["s", "x"]), chain("b", "g", [0.0, 0.0], states=["s", "y"])]
    credit = ATGRPO(alpha=0.5, std=None)(to_batch(grouped(members)))
    assert credit.advantage.tolist() == [0.25, 0.0, -0.25, 0.0]
    assert credit.metrics["credit/compared"] == 0.5


def test_what_an_agent_was_given_is_told_apart_from_what_the_team_was(chain, turn):
    first = turn("0", 0, "a", rewards=(Reward("team", 1.0, turn="0"), Reward("own", 0.5, turn="0", agent="a")))
    members = replace(chain("e", "g", [], outcome=9.0), turns=(first, turn("1", 0, "b", untrained="frozen"), turn("2", 1, "a")))
    object.__setattr__(members.turns[1], "rewards", (Reward("own", 0.25, turn="1", agent="a"),))
    ends = (*members.rewards, Reward("end", 2.0, agent="a"))
    turns = to_batch([Group("g", None, (replace(members, rewards=ends),), 1)]).turns
    assert turns.reward.tolist() == [1.75, 2.0]
    assert turns.local.tolist() == [0.75, 2.0]


def test_mashost_gives_the_worked_numbers(chain, grouped):
    data = golden("mashost_hrpo")
    inputs = zip(data["inputs"]["graph_rewards"], data["inputs"]["action_rewards"], strict=True)
    batch = to_batch(grouped([chain(f"e{i}", "g", acts, outcome=reward) for i, (reward, acts) in enumerate(inputs)]))
    for got, wanted in zip(by_episode(MasHostHRPO()(batch).advantage, batch), data["expected"], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def called(status: Any = "ok") -> tuple[ToolCall, ...]:
    return (ToolCall("python", {}, status, "", 0.0, 0.0),)


def thor_groups(chain, turn, statuses=("ok", "ok", "ok", "ok"), **changes):
    """The golden file's four episodes, and four forks of the failed one, whose second turn is taken again."""
    data = golden("thor")["inputs"]
    members = [
        replace(
            chain(f"e{i}", "g", [], outcome=reward),
            turns=(turn("0", 0, seed=i), turn("1", 1, seed=10 + i, tool_calls=called(status), **changes)),
        )
        for i, (reward, status) in enumerate(zip(data["episode_rewards"], statuses, strict=True))
    ]
    failed = members[1]
    forks = [
        replace(
            failed, id=f"f{i}", fork_of="e1", fork_cut=4,
            turns=(failed.turns[0], turn("1", 1, seed=20 + i, tool_calls=called("ok" if passed else "error"))),
        )
        for i, passed in enumerate(data["step_exec_pass"])
    ]  # fmt: skip
    return [Group("g", None, (*members, *forks), 8)]


def test_thor_gives_the_worked_numbers_at_both_levels(chain, turn):
    data = golden("thor")["expected"]
    batch, credit = assign(thor_groups(chain, turn), THOR(min_tokens=0))
    values, weights = by_episode(credit.advantage, batch), by_episode(credit.weight, batch)
    np.testing.assert_allclose(values[:4], [[a, a] for a in data["episode_adv"]], atol=1e-6)
    np.testing.assert_allclose(values[4:], [[0.0, a] for a in data["step_adv"]], atol=1e-6)
    assert weights[:4] == [[1.0, 1.0]] * 4 and weights[4:] == [[0.0, 1.0]] * 4


def test_thor_drops_an_episode_with_a_failed_call_before_the_statistics(chain, turn):
    batch, credit = assign(thor_groups(chain, turn, ("ok", "error", "ok", "ok")), THOR(min_tokens=0, std=None))
    values, weights = by_episode(credit.advantage, batch), by_episode(credit.weight, batch)
    np.testing.assert_allclose([v[0] for v in values[:4]], [1 / 3, 0.0, -2 / 3, 1 / 3], atol=1e-12)
    assert weights[1] == [0.0, 0.0]


def test_thor_drops_a_group_of_which_less_than_half_is_left(chain, turn):
    groups = thor_groups(chain, turn, ("ok", "error", "error", "timeout"))
    _, credit = assign(groups, THOR(min_tokens=0))
    assert np.count_nonzero(credit.advantage[:8]) == 0
    kept = thor_groups(chain, turn, ("ok", "ok", "error", "timeout"))
    assert np.count_nonzero(assign(kept, THOR(min_tokens=0))[1].advantage[:8]) == 4


@pytest.mark.parametrize(("changes", "min_tokens"), [({"valid": False}, 0), ({}, 150)])
def test_thor_drops_invalid_and_short_episodes(chain, turn, changes, min_tokens):
    _, credit = assign(thor_groups(chain, turn, **changes), THOR(min_tokens=min_tokens))
    assert np.count_nonzero(credit.advantage[:8]) == 0


def test_thor_drops_a_fork_that_ran_nothing(chain, turn):
    (group,) = thor_groups(chain, turn)
    *others, last = group.episodes
    silent = replace(last, turns=(last.turns[0], replace(last.turns[1], tool_calls=())))
    batch, credit = assign([replace(group, episodes=(*others, silent))], THOR(min_tokens=0, std=None))
    np.testing.assert_allclose(
        [v[1] for v in by_episode(credit.advantage, batch)[4:]], [2 / 3, -1 / 3, -1 / 3, 0.0], atol=1e-12
    )


def test_thor_refuses_a_fork_whose_parent_is_not_there(chain, turn):
    (group,) = thor_groups(chain, turn)
    with pytest.raises(UserError, match=r"episode f0 forks e1, which is in no group of the batch"):
        assign([replace(group, episodes=group.episodes[4:])], THOR())


def test_a_masked_decision_gets_no_credit_and_nothing_else_changes(chain, grouped, turn):
    data = golden("adacot")
    names = {name: number for number, name in enumerate(["<think>", "\n", "Let", "me", "</think>", "42"])}
    ids = [[names[name] for name in data["inputs"][key]] for key in ("response_tokens", "no_cot_tokens")]
    turns = [turn("0", sampled=len(own), sampled_ids=np.array(own, np.int32)) for own in ids]
    members = [replace(chain(f"e{i}", "g", [], outcome=float(i)), turns=(t,)) for i, t in enumerate(turns)]
    batch, credit = assign(grouped(members), DecisionMasked(base=GRPO(std=None), after=(names["<think>"],)))
    wanted = [[bool(m) for m in data[key]] for key in ("expected_loss_mask", "expected_loss_mask_no_cot")]
    assert [mask.tolist() for mask in credit.mask] == wanted
    assert credit.advantage.tolist() == GRPO(std=None)(batch).advantage.tolist() == [-0.5, 0.5]
    rows = to_rows(batch, credit)
    assert [row.trained[0].mask.tolist() for row in rows] == wanted
    assert rows[0].trained[0].advantage.tolist() == [-0.5, 0.0, -0.5, -0.5, -0.5, -0.5]


def test_the_decision_is_masked_in_what_a_fork_inherited_as_well(chain, turn):
    class Inherits(Outcome):
        def __call__(self, batch):
            return replace(super().__call__(batch), inherited=True)

    ids = np.array([9, 5, 6, 7], np.int32)
    whole = replace(chain("e", "g", [], outcome=1.0), turns=(turn("0", sampled=4, sampled_ids=ids, seed=1),))
    own = turn("0", sampled=4, sampled_ids=np.array([9, 5, 8, 8], np.int32), forced=2, seed=2)
    fork = replace(chain("f", "g", [], outcome=0.0), turns=(own,), fork_of="e")
    batch, credit = assign([Group("g", None, (whole, fork), 2)], DecisionMasked(base=Inherits(), after=(9,)))
    assert [mask.tolist() for mask in credit.mask] == [[True, False, True, True]] * 2
    assert [row.trained[0].places.tolist() for row in to_rows(batch, credit)] == [[0, 2, 3]] * 2
    _, first = assign([Group("g", None, (whole, fork), 2)], DecisionMasked(base=Inherits()))
    assert [mask.tolist() for mask in first.mask] == [[False, True, True, True]] * 2


def test_where_the_template_opens_the_thought_the_first_drawn_token_decides(chain, grouped, turn):
    members = [replace(chain(f"e{i}", "g", [], outcome=float(i)), turns=(turn("0", sampled=3, forced=i),)) for i in (0, 1)]
    _, credit = assign(grouped(members), DecisionMasked(base=GRPO(std=None)))
    assert [mask.tolist() for mask in credit.mask] == [[False, True, True], [False, False, True]]


def test_a_turn_without_the_tag_keeps_its_credit(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0], outcome=1.0), chain("b", "g", [0.0])]))
    credit = DecisionMasked(base=GRPO(std=None), after=(77, 78))(batch)
    assert all(mask.all() for mask in credit.mask)
    assert [row.trained[0].mask for row in to_rows(batch, credit)] == [None, None]


def test_a_base_that_leaves_forced_tokens_out_is_masked_at_the_right_place(chain, grouped, turn):
    from agentrl.episode import Column

    made = turn("0", sampled=3, forced=1, columns={"value": Column("value", np.zeros(3))})
    episode = replace(chain("a", "g", [], outcome=1.0), turns=(made,))
    credit = DecisionMasked(base=GAE(lam=1.0, over="token"))(to_batch(grouped([episode])))
    assert np.asarray(credit.advantage[0]).tolist() == [1.0, 1.0]
    assert credit.mask is not None and credit.mask[0].tolist() == [False, False, True]
    assert to_rows(to_batch(grouped([episode])), credit)[0].trained[0].advantage.tolist() == [0.0, 0.0, 1.0]


def test_what_they_need_is_known_before_the_run():
    assert SALT().needs == Needs(state=True, group=2)
    assert ATGRPO().needs == Needs(state=True, stopped=True)
    assert THOR().needs == Needs(group=2, stopped=True)
    assert SUPO().needs == MasHostHRPO().needs == Needs(group=2)
