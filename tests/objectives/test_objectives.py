from __future__ import annotations

import math

import pytest
import torch

from agentrl.errors import UserError
from agentrl.objectives import CISPO, NLL, Clipped, Entries
from agentrl.objectives.divergence import estimate

ROW = [0, 0, 0, 1, 2, 2]
TURN = [0, 0, 1, 2, 3, 3]
EPISODE = [0, 0, 0, 0, 1, 1]
LOGPROBS = [-1.0, -2.0, -0.5, -3.0, -0.1, -1.5]
BEHAVIOUR = [-1.4, -1.9, -0.5, -2.0, -0.2, -1.9]
ADVANTAGE = [1.0, 1.0, -1.0, 2.0, -0.5, -0.5]
WEIGHT = [1.0, 1.0, 1.0, 0.5, 2.0, 2.0]


def entries(**changes) -> Entries:
    def column(values):
        return torch.tensor(values, dtype=torch.float64)

    fields = {
        "logprobs": column(LOGPROBS).requires_grad_(),
        "behaviour": column(BEHAVIOUR),
        "advantage": column(ADVANTAGE),
        "weight": column(WEIGHT),
        "row": torch.tensor(ROW),
        "turn": torch.tensor(TURN),
        "episode": torch.tensor(EPISODE),
        "num_rows": 3,
    }
    return Entries(**(fields | changes))


def clipped_token(ratio: float, advantage: float, low: float = 0.2, high: float = 0.28) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


RATIOS = [math.exp(new - old) for new, old in zip(LOGPROBS, BEHAVIOUR, strict=True)]
LOSSES = [clipped_token(ratio, advantage) for ratio, advantage in zip(RATIOS, ADVANTAGE, strict=True)]


def weighted(values: list[float], weights: list[float]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def test_by_token_it_is_the_weighted_mean_of_the_clipped_losses():
    loss, _ = Clipped()(entries())
    assert loss.item() == pytest.approx(weighted(LOSSES, WEIGHT), abs=1e-12)


def test_by_row_every_row_counts_as_its_weight_however_long():
    means = [sum(LOSSES[:3]) / 3, LOSSES[3], sum(LOSSES[4:]) / 2]
    loss, _ = Clipped(aggregate="row")(entries())
    assert loss.item() == pytest.approx(weighted(means, [1.0, 0.5, 2.0]), abs=1e-12)


def test_by_episode_rows_of_one_episode_count_together():
    one = torch.ones(6, dtype=torch.float64)
    loss, _ = Clipped(aggregate="episode")(entries(weight=one))
    assert loss.item() == pytest.approx((sum(LOSSES[:4]) / 4 + sum(LOSSES[4:]) / 2) / 2, abs=1e-12)


@pytest.mark.parametrize(("ratio", "units"), [("turn", TURN), ("sequence", ROW)])
def test_a_shared_ratio_is_e_to_the_mean_log_ratio_of_its_unit(ratio, units):
    gaps = [new - old for new, old in zip(LOGPROBS, BEHAVIOUR, strict=True)]
    means = {u: sum(g for g, v in zip(gaps, units, strict=True) if v == u) / units.count(u) for u in units}
    losses = [clipped_token(math.exp(means[u]), a) for u, a in zip(units, ADVANTAGE, strict=True)]
    loss, _ = Clipped(ratio=ratio)(entries())
    assert loss.item() == pytest.approx(weighted(losses, WEIGHT), abs=1e-12)


def test_on_policy_the_gradient_is_that_of_the_policy_gradient():
    batch = entries(behaviour=torch.tensor(LOGPROBS, dtype=torch.float64))
    loss, metrics = Clipped()(batch)
    loss.backward()
    expected = [-a * w / sum(WEIGHT) for a, w in zip(ADVANTAGE, WEIGHT, strict=True)]
    assert batch.logprobs.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert metrics["clip/fraction"] == metrics["gap/max"] == metrics["kl/k3"] == 0.0
    assert metrics["ratio/mean"] == 1.0


def test_a_clipped_token_has_no_gradient():
    batch = entries()
    Clipped()(batch)[0].backward()
    outside = [i for i, (r, a) in enumerate(zip(RATIOS, ADVANTAGE, strict=True)) if (r > 1.28 and a > 0) or (r < 0.8 and a < 0)]
    assert outside == [0]
    assert [i for i, g in enumerate(batch.logprobs.grad.tolist()) if g == 0.0] == outside


def test_the_dual_clip_bounds_what_a_negative_advantage_can_cost():
    far = torch.tensor([0.0] * 6, dtype=torch.float64)
    stale = entries(behaviour=far - 5, logprobs=far.clone().requires_grad_(), advantage=far - 1, weight=far + 1)
    assert Clipped()(stale)[0].item() == pytest.approx(math.exp(5))
    assert Clipped(dual=3.0)(stale)[0].item() == pytest.approx(3.0)
    gain = entries(behaviour=far - 5, logprobs=far.clone().requires_grad_(), advantage=far + 1, weight=far + 1)
    assert Clipped(dual=3.0)(gain)[0].item() == pytest.approx(-1.28)


def test_metrics_say_how_far_the_policy_has_moved():
    _, metrics = Clipped()(entries())
    gaps = [new - old for new, old in zip(LOGPROBS, BEHAVIOUR, strict=True)]
    assert metrics["ratio/mean"] == pytest.approx(sum(RATIOS) / 6)
    assert metrics["ratio/max"] == pytest.approx(max(RATIOS))
    assert metrics["gap/mean"] == pytest.approx(sum(map(abs, gaps)) / 6)
    assert metrics["gap/max"] == pytest.approx(max(map(abs, gaps)))
    assert metrics["kl/k1"] == pytest.approx(-sum(gaps) / 6)
    assert metrics["kl/k3"] == pytest.approx(sum(math.exp(-g) + g - 1 for g in gaps) / 6)
    assert metrics["clip/fraction"] == pytest.approx(1 / 6)


def test_kl_is_against_the_reference_if_there_is_one_else_the_behaviour():
    reference = torch.tensor(BEHAVIOUR, dtype=torch.float64) - 0.3
    plain, _ = Clipped()(entries())
    for anchor, changes in ((BEHAVIOUR, {}), (reference.tolist(), {"reference": reference})):
        loss, metrics = Clipped(kl=0.5, kl_to="reference" if changes else "behaviour")(entries(**changes))
        gaps = [old - new for new, old in zip(LOGPROBS, anchor, strict=True)]
        penalties = [math.exp(g) - g - 1 for g in gaps]
        assert (loss - plain).item() == pytest.approx(0.5 * weighted(penalties, WEIGHT), abs=1e-12)
        assert ("kl/reference" in metrics) == bool(changes)


def test_entropy_is_a_bonus_and_must_be_given():
    entropy = torch.full((6,), 2.0, dtype=torch.float64)
    loss, metrics = Clipped(entropy=0.1)(entries(entropy=entropy))
    assert loss.item() == pytest.approx(weighted(LOSSES, WEIGHT) - 0.2)
    assert metrics["entropy"] == 2.0
    assert Clipped().idle_at_zero and not Clipped(entropy=0.1).idle_at_zero and not Clipped(kl=0.1).idle_at_zero
    assert Clipped(entropy=0.1).needs_entropy and not Clipped().needs_entropy
    with pytest.raises(UserError, match="entropy"):
        Clipped(entropy=0.1)(entries())


def test_a_stale_token_cannot_overflow_the_ratio():
    far = torch.tensor([-200.0] * 6, dtype=torch.float64)
    loss, metrics = Clipped()(entries(behaviour=far))
    assert math.isfinite(loss.item()) and math.isfinite(metrics["ratio/max"])


def test_k3_is_never_negative_and_zero_only_where_both_agree():
    d = torch.linspace(-3, 3, 61, dtype=torch.float64)
    values = estimate("k3", torch.zeros_like(d), d)
    assert (values >= 0).all()
    assert [i for i, v in enumerate(values.tolist()) if v < 1e-12] == [30]


@pytest.mark.parametrize(
    "settings", [{"low": -0.1}, {"low": 1.5}, {"high": -1}, {"dual": 1.0}, {"ratio": "word"}, {"aggregate": "batch"}]
)
def test_settings_without_meaning_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Clipped(**settings)


def test_nll_is_the_weighted_mean_of_minus_log_p_and_ignores_behaviour():
    batch = entries(behaviour=torch.full((6,), float("nan"), dtype=torch.float64))
    loss, metrics = NLL()(batch)
    loss.backward()
    assert loss.item() == pytest.approx(weighted([-x for x in LOGPROBS], WEIGHT), abs=1e-12)
    assert batch.logprobs.grad.tolist() == pytest.approx([-w / sum(WEIGHT) for w in WEIGHT])
    assert metrics["nll"] == pytest.approx(-sum(LOGPROBS) / 6)
    assert not NLL().needs_behaviour
    assert Clipped().needs_behaviour


def test_cispo_weighs_the_gradient_of_every_token_by_the_clipped_ratio():
    given = entries()
    loss, metrics = CISPO(high=0.28)(given)
    weights = [min(ratio, 1.28) for ratio in RATIOS]
    losses = [-w * a * lp for w, a, lp in zip(weights, ADVANTAGE, LOGPROBS, strict=True)]
    assert loss.item() == pytest.approx(weighted(losses, WEIGHT), abs=1e-12)
    loss.backward()
    expected = [-w * a * each / sum(WEIGHT) for w, a, each in zip(weights, ADVANTAGE, WEIGHT, strict=True)]
    assert given.logprobs.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert metrics["clip/fraction"] == pytest.approx(sum(ratio > 1.28 for ratio in RATIOS) / len(RATIOS))


def test_cispo_and_clipped_have_one_gradient_on_policy():
    grads = []
    for objective in (CISPO(), Clipped()):
        given = entries(behaviour=torch.tensor(LOGPROBS, dtype=torch.float64))
        objective(given)[0].backward()
        grads.append(given.logprobs.grad.tolist())
    assert grads[0] == pytest.approx(grads[1], abs=1e-12)


def test_cispo_has_no_dual_clip():
    with pytest.raises(UserError, match=r"CISPO has no dual clip, got dual=3\.0"):
        CISPO(dual=3.0)
