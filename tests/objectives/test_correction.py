"""Importance weights: the numbers by hand, the gradient by finite differences, and nothing where nothing is asked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from agentrl.config import apply_settings, experiment_json
from agentrl.errors import UserError
from agentrl.objectives import Clipped, Masked, Truncated
from agentrl_workflows.search_qa.experiment import search_qa
from tests.objectives.test_objectives import (
    ADVANTAGE,
    BEHAVIOUR,
    EPISODE,
    LOGPROBS,
    RATIOS,
    ROW,
    WEIGHT,
    entries,
    weighted,
)

BY_ROW = [math.prod(RATIOS[:3]), RATIOS[3], math.prod(RATIOS[4:])]
"""e^0.3, e^-1 and e^0.5."""


def gradient(objective: Clipped, **changes: Any) -> tuple[float, list[float], dict[str, float]]:
    batch = entries(**changes)
    loss, metrics = objective(batch)
    loss.backward()
    return loss.item(), batch.logprobs.grad.tolist(), dict(metrics)


def test_the_ratios_of_the_example() -> None:
    assert [math.log(ratio) for ratio in RATIOS] == pytest.approx([0.4, -0.1, 0.0, -1.0, 0.1, 0.4])
    assert [math.log(ratio) for ratio in BY_ROW] == pytest.approx([0.3, -1.0, 0.5])


@pytest.mark.parametrize(
    ("correction", "factors"),
    [
        (Truncated(1.2), [min(ratio, 1.2) for ratio in RATIOS]),
        (Truncated(1.4, by="sequence"), [min(BY_ROW[row], 1.4) for row in ROW]),
    ],
)
def test_truncated_weights_are_factors_of_the_policy_gradient(correction: Truncated, factors: list[float]) -> None:
    loss, grad, metrics = gradient(Clipped(correction=correction))
    terms = [-factor * advantage for factor, advantage in zip(factors, ADVANTAGE, strict=True)]
    assert loss == pytest.approx(weighted(terms, WEIGHT), abs=1e-12)
    assert grad == pytest.approx([term * weight / sum(WEIGHT) for term, weight in zip(terms, WEIGHT, strict=True)], abs=1e-12)
    assert metrics["correction/mean"] == pytest.approx(sum(factors) / 6)
    assert metrics["correction/truncated"] == pytest.approx(2 / 6)
    assert metrics["ratio/max"] == pytest.approx(max(RATIOS))
    assert metrics["clip/fraction"] == 0.0


@pytest.mark.parametrize(
    ("correction", "out"),
    [(Masked(0.5, 1.2), [0, 3, 5]), (Masked(0.5, 1.4, by="sequence"), [3, 4, 5]), (Masked(0.0, 2.0, by="sequence"), [])],
)
def test_masked_tokens_are_out_of_the_loss_and_of_its_mean(correction: Masked, out: list[int]) -> None:
    factors = RATIOS if correction.by == "token" else [BY_ROW[row] for row in ROW]
    kept = [n for n in range(6) if n not in out]
    total = sum(WEIGHT[n] for n in kept)
    loss, grad, metrics = gradient(Clipped(correction=correction))
    assert loss == pytest.approx(sum(-factors[n] * ADVANTAGE[n] * WEIGHT[n] for n in kept) / total, abs=1e-12)
    wanted = [-factors[n] * ADVANTAGE[n] * WEIGHT[n] / total if n in kept else 0.0 for n in range(6)]
    assert grad == pytest.approx(wanted, abs=1e-12)
    assert metrics["correction/masked"] == pytest.approx(len(out) / 6)
    assert metrics["correction/mean"] == pytest.approx(sum(factors[n] for n in kept) / len(kept))


def test_by_row_a_row_keeps_its_weight_while_a_token_of_it_is_kept_and_goes_when_none_is() -> None:
    """Row 0 keeps tokens 1 and 2, row 1 (ratio e^-1) is gone, row 2 keeps token 4: weights 1 and 2, not 2/3 and 1."""
    loss, _, _ = gradient(Clipped(aggregate="row", correction=Masked(0.5, 1.2)))
    first = (-RATIOS[1] * ADVANTAGE[1] - RATIOS[2] * ADVANTAGE[2]) / 2
    second = -RATIOS[4] * ADVANTAGE[4]
    assert loss == pytest.approx((1.0 * first + 2.0 * second) / 3.0, abs=1e-12)


@pytest.mark.parametrize("aggregate", ["token", "row", "episode"])
def test_where_all_is_masked_there_is_nothing_to_learn(aggregate: Any) -> None:
    far = torch.tensor(BEHAVIOUR, dtype=torch.float64) - 9
    loss, grad, metrics = gradient(Clipped(aggregate=aggregate, kl=0.1, kl_to="behaviour", correction=Masked()), behaviour=far)
    assert loss == 0.0 and grad == [0.0] * 6
    assert metrics["correction/masked"] == 1.0 and metrics["correction/mean"] == 0.0


def fixed(objective: Clipped, logprobs: list[float], factors: list[float], kept: list[float]) -> float:
    """The corrected loss written out, with the old policy and the weights as constants: what the gradient is of."""
    losses: list[float] = []
    for n, (new, old) in enumerate(zip(logprobs, LOGPROBS, strict=True)):
        ratio = math.exp(new - old)
        clipped = min(max(ratio, 1 - objective.low), 1 + objective.high)
        gap = BEHAVIOUR[n] - new
        penalty = objective.kl * (math.exp(gap) - gap - 1)
        losses.append(factors[n] * max(-ratio * ADVANTAGE[n], -clipped * ADVANTAGE[n]) + penalty)
    if objective.aggregate == "token":
        return weighted(losses, [weight * keep for weight, keep in zip(WEIGHT, kept, strict=True)])
    units = ROW if objective.aggregate == "row" else EPISODE
    total, count = 0.0, 0.0
    for unit in sorted(set(units)):
        inside = [n for n in range(6) if units[n] == unit and kept[n]]
        if inside:
            weight = sum(WEIGHT[n] for n in inside) / len(inside)
            total += weight * weighted([losses[n] for n in inside], [WEIGHT[n] for n in inside])
            count += weight
    return total / count


@pytest.mark.parametrize("aggregate", ["token", "row", "episode"])
@pytest.mark.parametrize(
    "correction", [Truncated(1.2), Truncated(1.4, "sequence"), Masked(0.5, 1.2), Masked(0.0, 1.5, "sequence")]
)
def test_the_gradient_is_that_of_the_ratio_against_the_old_policy_alone(aggregate: Any, correction: Any) -> None:
    objective = Clipped(aggregate=aggregate, kl=0.3, kl_to="behaviour", correction=correction)
    raw = RATIOS if correction.by == "token" else [BY_ROW[row] for row in ROW]
    if isinstance(correction, Truncated):
        factors, kept = [min(w, correction.at) for w in raw], [1.0] * 6
    else:
        factors, kept = raw, [float(correction.low <= w <= correction.high) for w in raw]
    loss, grad, _ = gradient(objective)
    assert loss == pytest.approx(fixed(objective, LOGPROBS, factors, kept), abs=1e-12)
    step = 1e-6
    for n in range(6):
        up, down = LOGPROBS.copy(), LOGPROBS.copy()
        up[n] += step
        down[n] -= step
        slope = (fixed(objective, up, factors, kept) - fixed(objective, down, factors, kept)) / (2 * step)
        assert grad[n] == pytest.approx(slope, abs=1e-8), n


@pytest.mark.parametrize("aggregate", ["token", "row"])
def test_on_policy_a_correction_changes_nothing(aggregate: Any) -> None:
    same = {"behaviour": torch.tensor(LOGPROBS, dtype=torch.float64)}
    plain = gradient(Clipped(aggregate=aggregate), **same)[:2]
    for correction in (Truncated(), Truncated(by="sequence"), Masked(), Masked(by="sequence")):
        loss, grad, _ = gradient(Clipped(aggregate=aggregate, correction=correction), **same)
        assert loss == pytest.approx(plain[0], abs=1e-15)
        assert grad == pytest.approx(plain[1], abs=1e-15)


def test_a_token_that_is_ages_old_cannot_overflow_its_weight() -> None:
    far = torch.tensor([-200.0] * 6, dtype=torch.float64)
    loss, grad, _ = gradient(Clipped(correction=Truncated(1e12, "sequence")), behaviour=far)
    assert math.isfinite(loss) and all(map(math.isfinite, grad))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Truncated(0.5), r"Truncated\(at=C\) needs C >= 1, got 0.5"),
        (lambda: Truncated(float("nan")), "got nan"),
        (lambda: Truncated(2.0, "row"), r"Truncated\(by=...\) is 'token' or 'sequence', got 'row'"),  # type: ignore[arg-type]
        (lambda: Masked(1.5, 2.0), "Masked needs 0 <= low <= 1 <= high"),
        (lambda: Masked(0.5, 0.9), "got 0.5, 0.9"),
        (lambda: Masked(by="turn"), "got 'turn'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_would_change_on_policy_tokens_are_refused(make: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_a_run_folder_says_which_correction_it_was_and_settings_reach_it() -> None:
    experiment = replace(search_qa("model"), objective=Clipped(correction=Truncated(3.0)))
    said = str(experiment_json(experiment)["objective"]["correction"])
    assert "Truncated" in said and "3.0" in said
    changed = apply_settings(experiment, ["objective.correction.at=5"])
    assert changed.objective == Clipped(correction=Truncated(5.0))
