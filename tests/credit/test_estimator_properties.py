"""What holds for every estimator, on drawn batches; where the formula says otherwise, the table says why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.credit import (
    ATGRPO,
    ESTIMATORS,
    GAE,
    GTPO,
    IGPO,
    RLOO,
    SALT,
    THOR,
    Credit,
    Estimator,
    GiGPO,
    PassAtK,
    ReinforcePP,
    SPOChain,
    SPOTree,
    TreePO,
    assign,
)
from agentrl.credit.imitation import Imitation
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, Episode, Group, Probe, Reward, State
from agentrl.errors import UserError
from tests.credit.conftest import make_chain


@dataclass(frozen=True)
class Law:
    """Why something does not hold of a method; "" = it holds. What every method obeys has no field."""

    equal: str = ""
    """Equal rewards in a group give exactly 0."""
    lone: str = ""
    """An episode alone in its group gets 0."""
    own: str = ""
    """A group's credit follows from the group."""
    shift: str = ""
    """A number added to all outcomes of a group changes nothing."""
    scale: str = "drops out"
    """What a factor of all rewards does: it "drops out", "goes through", or why neither."""


VALUES = "values of a critic are subtracted, not those of a group"
BASELINE = "the baseline is what a reference earned, so that a group which fails is pushed down"
DISCOUNT = "turns of one state or index have different ways ahead, which discounts the outcome differently"
WHITENED = "the mean and the deviation are the batch's, of all groups"
TURNS = "an outcome on the last turn is compared with the gains of other turns"

LAWS: dict[str, tuple[Estimator, Law]] = {
    "adacot_masked": (ESTIMATORS["adacot_masked"](), Law()),
    "arpo_agentic": (ESTIMATORS["arpo_agentic"](), Law()),
    "at_grpo": (ATGRPO(), Law()),
    "dr_grpo": (ESTIMATORS["dr_grpo"](), Law(scale="goes through")),
    "gae": (GAE(), Law(equal=VALUES, lone=VALUES, shift=VALUES, scale=VALUES)),
    "gigpo": (GiGPO(), Law(equal=DISCOUNT, shift=DISCOUNT, scale="goes through")),
    "grpo": (ESTIMATORS["grpo"](), Law()),
    "gtpo_turn": (GTPO(), Law(equal=DISCOUNT, shift=DISCOUNT)),
    "hrpo_mashost": (ESTIMATORS["hrpo_mashost"](), Law()),
    "igpo": (IGPO(), Law(equal=TURNS, shift=TURNS, scale=TURNS)),
    "passk": (PassAtK(k=1), Law()),
    "pvpo": (ESTIMATORS["pvpo"](), Law(equal=BASELINE, lone=BASELINE, shift=BASELINE, scale=BASELINE)),
    "reinforce_pp": (ReinforcePP(), Law(equal=WHITENED, lone=WHITENED, own=WHITENED, shift=WHITENED)),
    "rloo": (RLOO(), Law(scale="goes through")),
    "salt": (SALT(), Law()),
    "spo_chain": (SPOChain(), Law(scale="goes through")),
    "spo_tree": (SPOTree(), Law(scale="goes through")),
    "supo": (ESTIMATORS["supo"](), Law()),
    "thor": (THOR(min_tokens=0), Law()),
    "tree_grpo": (ESTIMATORS["tree_grpo"](), Law()),
    "tree_opo": (ESTIMATORS["tree_opo"](), Law(scale="goes through")),
    "treepo": (TreePO(), Law(lone=WHITENED, own=WHITENED, equal=WHITENED)),
}
MORE: list[tuple[Estimator, Law]] = [
    (ReinforcePP(baseline="group"), Law(own=WHITENED, equal=WHITENED)),
    (GTPO(gamma=1.0, over="group", std=None), Law(scale="goes through")),
    (GiGPO(gamma=1.0, statistics="rows", std="sample"), Law()),
    (TreePO(whiten=False), Law(scale="goes through")),
    (ESTIMATORS["tree_grpo"](form="nested"), Law()),  # type: ignore[call-arg]
    (ESTIMATORS["arpo_agentic"](shared="hard"), Law()),  # type: ignore[call-arg]
    (SALT(base=RLOO(), history=2), Law(scale="goes through")),
    (Imitation(), Law(*["demonstrations are imitated, whatever they earned"] * 5)),
]
ALL = [*LAWS.values(), *MORE]

outcome = st.sampled_from([0.0, 0.25, 0.5, 1.0])
group = st.lists(st.tuples(outcome, st.integers(1, 3)), min_size=2, max_size=4)
groups = st.lists(group, min_size=1, max_size=3)
Drawn = Sequence[Sequence[tuple[float, int]]]


def made(drawn: Drawn, estimator: Estimator) -> list[Group]:
    """Groups of episodes with an outcome and so many turns; first turns begin in one state, and then ways part.

    For a method that wants forks every second episode forks the one before it behind its first turn.
    """
    result: list[Group] = []
    for g, members in enumerate(drawn):
        episodes: list[Episode] = []
        for e, (value, count) in enumerate(members):
            episode = grown(f"{g}.{e}", f"g{g}", e, value, count)
            forks = estimator.needs.forks and e % 2
            episodes.append(forked(episode, episodes[-1]) if forks else episode)
        result.append(Group(f"g{g}", {"reference_rewards": [0.25, 0.5]}, tuple(episodes), len(episodes)))
    return result


def grown(name: str, group: str, e: int, value: float, count: int) -> Episode:
    """An episode with all that an estimator may read."""
    episode = make_chain(name, group, [0.0] * count, outcome=value)
    turns = tuple(
        replace(
            turn,
            seed=100 * e + t,
            state=State(before=f"{t}" if t == 0 else f"{e}.{t}", action=f"{e % 2}", after=f"{e % 2}.{t}"),
            probes=tuple(
                Probe(name, 0, EMPTY_IDS, EMPTY_LOGPROBS, value=(3 * e + 2 * t) % 5 / 5) for name in ("answer", "value")
            ),
            logprobs=np.full(2, -1.0, np.float32),
        )
        for t, turn in enumerate(episode.turns)
    )
    return replace(episode, turns=turns)


def forked(episode: Episode, parent: Episode) -> Episode:
    """The episode behind the first turn of its parent, with a turn of its own at least."""
    own = episode.turns[1:] or (replace(grown("", "", int(parent.turns[0].seed) + 50, 0.0, 2).turns[1]),)
    return replace(episode, turns=(parent.turns[0], *own), fork_of=parent.id, fork_cut=1)


def by_turn(groups: Sequence[Group], estimator: Estimator) -> dict[tuple[str, str], Any]:
    """(episode, turn) -> advantage and weight."""
    batch, credit = assign(groups, estimator)
    return told(batch.episodes, credit)


def told(episodes: Sequence[Episode], credit: Credit) -> dict[tuple[str, str], Any]:
    weight = np.ones(len(credit.turns)) if credit.weight is None else credit.weight
    return {
        (episodes[int(credit.turns.episode[t])].id, turn.id): np.append(credit.advantage[t], weight[t])
        for t, turn in enumerate(credit.turns.turn)
    }


def same(a: dict[Any, Any], b: dict[Any, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_allclose(value, b[key], atol=1e-9, err_msg=str(key))


def nothing(credit: dict[tuple[str, str], Any], episode: str = "") -> bool:
    """Whether no turn (of the episode) is pushed anywhere: by an advantage of 0, or a weight of 0."""
    return not any(value[:-1].any() and value[-1] for key, value in credit.items() if episode in ("", key[0]))


def those(law: str) -> Any:
    """The methods of which this holds."""
    return pytest.mark.parametrize("estimator", [each for each, laws in ALL if not getattr(laws, law)], ids=repr)


def of_scale(what: str) -> Any:
    return pytest.mark.parametrize("estimator", [each for each, laws in ALL if laws.scale == what], ids=repr)


every = pytest.mark.parametrize("estimator", [each for each, _ in ALL], ids=repr)
few = settings(max_examples=12)


def test_the_table_names_every_estimator():
    assert LAWS.keys() == ESTIMATORS.keys()
    assert all(type(estimator) is ESTIMATORS[name] for name, (estimator, _) in LAWS.items())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_has_at_most_five_fields(name):
    assert len(fields(ESTIMATORS[name])) <= (7 if name == "gigpo" else 5)  # gigpo is two papers' worth of choices


@pytest.mark.parametrize("name", ESTIMATORS)
def test_who_may_be_alone_in_a_group_gets_nothing_by_default(name):
    defaults = {field.name: field.default for field in fields(ESTIMATORS[name])}
    assert "singleton" not in defaults or defaults["singleton"] == 0.0


@every
def test_where_rewards_differ_every_method_gives_credit(estimator):
    drawn = [[(1.0, 2), (0.0, 3), (0.5, 1), (0.0, 2)], [(0.25, 1), (1.0, 1), (1.0, 3)]]
    credit = by_turn(made(drawn, estimator), estimator)
    assert not nothing(credit) and all(np.isfinite(value).all() for value in credit.values())


@every
@few
@given(drawn=groups, random=st.randoms(use_true_random=False))
def test_the_order_of_groups_and_members_does_not_matter(estimator, drawn, random):
    plain = made(drawn, estimator)
    mixed = [replace(g, episodes=tuple(random.sample(g.episodes, len(g.episodes)))) for g in random.sample(plain, len(plain))]
    one, other = by_turn(plain, estimator), by_turn(mixed, estimator)
    if isinstance(estimator, SPOTree):  # a shared turn is trained in the first leaf that holds it, whichever that is
        assert math.isclose(sum(value[-1] for value in one.values()), sum(value[-1] for value in other.values()))
        one, other = ({key: value[:-1] for key, value in each.items()} for each in (one, other))
    same(one, other)


@those("shift")
@few
@given(drawn=groups, shift=st.floats(-5, 5))
def test_a_shift_of_the_outcomes_changes_nothing(estimator, drawn, shift):
    moved = [[(value + shift, count) for value, count in members] for members in drawn]
    plain, other = by_turn(made(drawn, estimator), estimator), by_turn(made(moved, estimator), estimator)
    for key, value in plain.items():
        np.testing.assert_allclose(value[:-1], other[key][:-1], atol=1e-4)  # 1e-6 beside a deviation; rounding of the shift


@of_scale("goes through")
@few
@given(drawn=groups, scale=st.floats(0.1, 10))
def test_a_scale_goes_through_where_nothing_is_divided(estimator, drawn, scale):
    scaled = [[(value * scale, count) for value, count in members] for members in drawn]
    plain, other = by_turn(made(drawn, estimator), estimator), by_turn(made(scaled, estimator), estimator)
    for key, value in plain.items():
        np.testing.assert_allclose(other[key][:-1], value[:-1] * scale, atol=1e-9)


@of_scale("drops out")
@few
@given(drawn=groups, scale=st.floats(0.2, 10))
def test_a_scale_drops_out_where_the_deviation_divides(estimator, drawn, scale):
    scaled = [[(value * scale, count) for value, count in members] for members in drawn]
    plain, other = by_turn(made(drawn, estimator), estimator), by_turn(made(scaled, estimator), estimator)
    for key, value in plain.items():
        np.testing.assert_allclose(other[key][:-1], value[:-1], atol=3e-3)  # 1e-6 or sqrt(1e-8) beside the deviation


@those("equal")
@few
@given(shape=groups, random=st.randoms(use_true_random=False))
def test_equal_rewards_of_a_group_give_exactly_nothing(estimator, shape, random):
    value = [random.uniform(-10, 10) for _ in shape]
    equal = [[(value[g], count) for _, count in members] for g, members in enumerate(shape)]
    assert nothing(by_turn(made(equal, estimator), estimator))


@pytest.mark.parametrize("estimator", [ReinforcePP(), ReinforcePP(baseline="group"), TreePO()], ids=repr)
@few
@given(shape=groups, value=st.floats(-10, 10))
def test_equal_rewards_of_the_batch_give_exactly_nothing_where_the_batch_is_compared(estimator, shape, value):
    assert nothing(by_turn(made([[(value, count) for _, count in members] for members in shape], estimator), estimator))


@pytest.mark.parametrize("estimator", [GiGPO(), GTPO()], ids=repr)
@few
@given(sizes=st.lists(st.tuples(st.integers(2, 4), st.integers(1, 3)), min_size=1, max_size=3), value=outcome)
def test_where_returns_are_discounted_equal_rewards_of_equal_lengths_give_exactly_nothing(estimator, sizes, value):
    assert nothing(by_turn(made([[(value, count)] * members for members, count in sizes], estimator), estimator))


@pytest.mark.parametrize("estimator", [each for each, law in ALL if law.equal not in (BASELINE, VALUES, TURNS)][:-1], ids=repr)
@few
@given(shape=groups)
def test_without_successes_there_is_no_credit(estimator, shape):
    assert nothing(by_turn(made([[(0.0, count) for _, count in members] for members in shape], estimator), estimator))


def test_without_successes_a_reference_pushes_down():
    credit = by_turn(made([[(0.0, 1), (0.0, 2)]], LAWS["pvpo"][0]), LAWS["pvpo"][0])
    assert {float(value[0]) for value in credit.values()} == {-0.375}


@every
@few
@given(drawn=groups, value=outcome)
def test_a_lost_episode_is_as_if_it_had_never_been(estimator, drawn, value):
    plain = made(drawn, estimator)
    lost: list[Group] = []
    for g in plain:
        gone = replace(grown(f"{g.id}.lost", g.id, 9, value, 2), status="failed")
        lost.append(replace(g, episodes=(*g.episodes, forked(gone, g.episodes[0]) if estimator.needs.forks else gone)))
    same(by_turn(plain, estimator), by_turn(lost, estimator))


@those("own")
@few
@given(drawn=st.lists(group, min_size=2, max_size=3))
def test_a_groups_credit_is_its_own(estimator, drawn):
    together = by_turn(made(drawn, estimator), estimator)
    apart: dict[tuple[str, str], Any] = {}
    for g in made(drawn, estimator):
        apart |= by_turn([g], estimator)
    same(together, apart)


@those("lone")
@few
@given(value=outcome, count=st.integers(1, 3), other=group)
def test_a_lone_survivor_gets_no_credit(estimator, value, count, other):
    both = made([[(value, count), (0.5, 1)], other], estimator)
    first, second = both[0].episodes
    alone = [replace(both[0], episodes=(first, replace(second, status="failed"))), both[1]]
    assert nothing(by_turn(alone, estimator), first.id)


@pytest.mark.parametrize("estimator", [each for each, law in ALL if law.lone != WHITENED], ids=repr)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_group_of_one_is_refused_or_gets_nothing_or_is_held_against_what_is_no_group(estimator, value):
    groups = made([[(value, 3)]], estimator)
    if isinstance(estimator, PassAtK):
        with pytest.raises(UserError, match=r"all credit would be 0; let rollout.size be above 1, or set credit.k"):
            by_turn(groups, estimator)
        return
    credit = by_turn(groups, estimator)
    held_against = next(law.lone for each, law in ALL if each is estimator)
    assert nothing(credit) is not bool(held_against)


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused(estimator, value):
    (g,) = made([[(0.0, 2), (1.0, 2), (0.5, 1)]], estimator)
    first, *others = g.episodes
    own = (replace(first.turns[0], rewards=(Reward("own", value),)), *first.turns[1:])
    for bad in (replace(first, rewards=(Reward("outcome", value),)), replace(first, turns=own)):
        with pytest.raises(UserError, match=f"{first.id}.* is {value}; rewards must be finite"):
            assign([replace(g, episodes=(bad, *others))], estimator)


def stateless(groups: Sequence[Group], state: Any) -> list[Group]:
    """The groups with the state of each turn replaced by `state(episode, turn)`."""
    result: list[Group] = []
    for g in groups:
        episodes = (replace(e, turns=tuple(replace(t, state=state(e, t)) for t in e.turns)) for e in g.episodes)
        result.append(replace(g, episodes=tuple(episodes)))
    return result


@pytest.mark.parametrize("estimator", [each for each, _ in ALL if each.needs.state], ids=repr)
@pytest.mark.parametrize("kind", ["unknown", "empty", "unlike"])
@few
@given(drawn=groups)
def test_where_no_state_matches_only_what_needs_none_is_left(estimator, kind, drawn):
    states = {
        "unknown": lambda episode, turn: None,
        "empty": lambda episode, turn: State(),
        "unlike": lambda episode, turn: State(*[f"{episode.id} {turn.id}"] * 3),
    }
    credit = by_turn(stateless(made(drawn, estimator), states[kind]), estimator)
    if isinstance(estimator, ATGRPO):
        assert nothing(credit)
    elif isinstance(estimator, SALT):
        same(credit, by_turn(made(drawn, estimator), estimator.base))
    else:
        assert isinstance(estimator, GiGPO)
        same(credit, by_turn(made(drawn, estimator), replace(estimator, omega=0.0)))


@pytest.mark.parametrize("estimator", [GiGPO(), GiGPO(std="sample", statistics="rows"), GTPO(over="group")], ids=repr)
def test_a_lone_episode_that_comes_back_to_a_state_has_nobody_to_be_compared_with(estimator):
    (g,) = made([[(1.0, 3)]], estimator)
    assert nothing(by_turn(stateless([replace(g, wanted=2)], lambda episode, turn: State(before="hall")), estimator))
