"""The estimators and transforms by the names that the command line takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import pytest

from agentrl.config import difference, experiment_json, put_settings
from agentrl.credit import ESTIMATORS, GRPO, RLOO, SALT, DecisionMasked, Estimator, Needs, PassAtK, ReinforcePP
from agentrl.transforms import OTC, TRANSFORMS, Replay, RewardTransform
from tests.credit.conftest import make_chain

OURS = (
    "adacot_masked",
    "at_grpo",
    "dr_grpo",
    "gae",
    "hrpo_mashost",
    "passk",
    "pvpo",
    "reinforce_pp",
    "rloo",
    "salt",
    "supo",
    "thor",
)


@dataclass(frozen=True)
class Plugged:
    credit: Estimator = field(default_factory=GRPO)
    transforms: Sequence[RewardTransform] = ()


@pytest.mark.parametrize("name", OURS)
def test_each_is_made_from_its_name_alone_and_has_at_most_five_fields(name):
    made = put_settings(Plugged(), [f"credit={name}"]).credit
    assert type(made) is ESTIMATORS[name] and isinstance(made.needs, Needs)
    assert len(fields(made)) <= 5
    assert made.__doc__ and "arXiv" in made.__doc__


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_is_made_from_its_name_alone(name):
    (made,) = put_settings(Plugged(), [f"transforms={name}"]).transforms
    assert type(made) is TRANSFORMS[name] and len(fields(made)) <= 5 and made.__doc__ and "arXiv" in made.__doc__


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["credit=salt", "credit.base=agentrl.credit:RLOO", "credit.history=2"], SALT(base=RLOO(), history=2)),
        (["credit=adacot_masked", "credit.after=5,6"], DecisionMasked(after=(5, 6))),
        (["credit=reinforce_pp", "credit.baseline=group"], ReinforcePP(baseline="group")),
        (["credit=passk", "credit.k=2"], PassAtK(k=2)),
    ],
)
def test_their_fields_are_set_by_name(settings, wanted):
    assert put_settings(Plugged(), settings).credit == wanted


def test_fields_of_transforms_are_set_by_number():
    (otc, replay) = put_settings(Plugged(), ["transforms=otc,arpo_gui", "transforms.0.against=limit"]).transforms
    assert otc == OTC(against="limit") and isinstance(replay, Replay)


def test_what_a_replay_has_in_memory_is_not_part_of_what_a_run_is():
    fresh, used = Replay(), Replay()
    used.successes.add(None, [make_chain("won", "g", [0.0], outcome=1.0)])
    told, other = (experiment_json(Plugged(transforms=(each,))) for each in (fresh, used))
    assert difference(told, other) == []
