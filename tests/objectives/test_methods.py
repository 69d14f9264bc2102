"""The published objectives by name, and the authors' numbers where there are some."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agentrl.config import apply_settings, experiment_json
from agentrl.errors import UserError
from agentrl.objectives import CISPO, NLL, OBJECTIVES, Clipped, Entries
from agentrl_workflows.search_qa.experiment import search_qa
from tests.objectives.plain import random_entries

GOLDEN = Path(__file__).parents[1] / "credit" / "golden"


def test_thors_loss_is_the_authors() -> None:
    data = json.loads((GOLDEN / "thor.json").read_text())
    inputs = {
        name: torch.tensor(data["inputs"][name], dtype=torch.float64) for name in ("log_prob", "old_log_prob", "advantage")
    }
    mask = torch.tensor(data["inputs"]["mask"]) == 1
    row = torch.arange(2)[:, None].expand(2, 3)[mask]
    entries = Entries(
        logprobs=inputs["log_prob"][mask].requires_grad_(), behaviour=inputs["old_log_prob"][mask],
        advantage=inputs["advantage"][mask], weight=torch.ones(len(row), dtype=torch.float64), row=row, turn=row, episode=row,
        num_rows=2,
    )  # fmt: skip
    loss, metrics = OBJECTIVES["thor"](entries)
    assert OBJECTIVES["thor"] == Clipped(low=0.2, high=0.28, dual=3.0, aggregate="token", nll=0.01)
    assert replace(OBJECTIVES["thor"], nll=0.0)(entries)[0].item() == pytest.approx(data["official"]["pg_loss"], abs=1e-6)
    assert metrics["nll/positive"] == pytest.approx(data["expected"]["nll"], abs=1e-12)
    assert loss.item() == pytest.approx(data["official"]["total"], abs=1e-6)


def one_advantage_a_row(entries: Entries) -> Entries:
    values = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    return replace(entries, advantage=values[entries.row])


@pytest.mark.parametrize("aggregate", ["token", "row"])
@pytest.mark.parametrize("bounds", [(3e-4, 4e-4), (0.2, 0.28)])
def test_with_one_advantage_a_row_it_is_gspo_gradient_and_all(aggregate: Any, bounds: tuple[float, float]) -> None:
    """GSPO's own form: the ratio of a row with the gradient of its mean log-ratio (eq. 5-7)."""
    low, high = bounds
    entries = one_advantage_a_row(random_entries(5))
    got = Clipped(low=low, high=high, ratio="sequence", aggregate=aggregate)(entries)[0]
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(4):
        inside = entries.row == row
        ratio = (entries.logprobs[inside] - entries.behaviour[inside]).mean().exp()
        advantage, weight = entries.advantage[inside][0], float(entries.weight[inside][0])
        weight *= int(inside.sum()) if aggregate == "token" else 1
        total = total - weight * torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
        count += weight
    assert got.item() == pytest.approx((total / count).item(), abs=1e-12)
    grads = [torch.autograd.grad(loss, entries.logprobs)[0].tolist() for loss in (got, total / count)]
    assert grads[0] == pytest.approx(grads[1], abs=1e-12)


@pytest.mark.parametrize("ratio", ["turn", "sequence"])
def test_a_shared_ratio_leaves_the_tokens_of_a_row_their_own_credit(ratio: Any) -> None:
    """On policy the gradient is the policy gradient, also where turns of one row have advantages of their own."""
    entries = random_entries(6)
    entries = replace(entries, behaviour=entries.logprobs.detach().clone())
    loss, _ = Clipped(ratio=ratio)(entries)
    wanted = -entries.weight * entries.advantage / entries.weight.sum()
    assert torch.autograd.grad(loss, entries.logprobs)[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-15)


def test_dr_grpo_sums_over_a_row_and_divides_by_the_longest_allowed() -> None:
    entries = replace(one_advantage_a_row(random_entries(7)), weight=torch.ones_like(random_entries(7).weight))
    entries = replace(entries, behaviour=entries.logprobs.detach().clone())
    loss, _ = Clipped(aggregate="row", length=100)(entries)
    assert loss.item() == pytest.approx(-float(entries.advantage.sum()) / 4 / 100, abs=1e-15)
    by_episode, _ = Clipped(aggregate="episode", length=100)(entries)
    assert by_episode.item() == pytest.approx(-float(entries.advantage.sum()) / 2 / 100, abs=1e-15)


def test_the_short_names_stand_for_the_published_numbers() -> None:
    assert {
        "cispo": CISPO(),
        "clipped": Clipped(),
        "dapo": Clipped(low=0.2, high=0.28, aggregate="token"),
        "grpo": Clipped(low=0.2, high=0.2, aggregate="row", kl=0.04, kl_form="k3", kl_to="reference"),
        "gspo": Clipped(low=0.0003, high=0.0004, ratio="sequence", aggregate="row"),
        "nll": NLL(),
        "ppo": Clipped(low=0.2, high=0.2, aggregate="token"),
        "thor": Clipped(low=0.2, high=0.28, dual=3.0, aggregate="token", nll=0.01),
    } == OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_command_line_takes_each_by_its_name_and_its_fields_after_it(name: str) -> None:
    experiment = search_qa("model")
    chosen = apply_settings(experiment, [f"objective={name}"])
    assert chosen.objective == OBJECTIVES[name]
    assert experiment_json(chosen)["objective"]["type"].endswith(type(chosen.objective).__name__)
    if isinstance(chosen.objective, Clipped):
        fields = ["objective.kl=0.01", "objective.kl_form=k2", "objective.kl_to=behaviour", "objective.length=512"]
        changed = apply_settings(experiment, [f"objective={name}", *fields, "objective.nll=0.05"]).objective
        assert changed == replace(chosen.objective, kl=0.01, kl_form="k2", kl_to="behaviour", length=512.0, nll=0.05)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"length": 0}, r"Clipped\(length=...\) needs a number above 0, got 0; use None for means"),
        ({"kl": -0.1}, r"needs kl >= 0 and nll >= 0, got kl=-0.1, nll=0.0"),
        ({"nll": -1.0}, r"got kl=0.0, nll=-1.0"),
        ({"kl_form": "k4"}, r"Clipped\(kl_form=...\) is one of 'k1', 'k2', 'k3', 'reward', got 'k4'"),
        ({"kl_to": "old"}, r"Clipped\(kl_to=...\) is one of 'reference', 'behaviour', got 'old'"),
        ({"kl": 0.1, "kl_form": "reward", "kl_to": "behaviour"}, r"is 0 against the behaviour policy itself"),
    ],
)
def test_settings_without_meaning_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Clipped(**settings)
