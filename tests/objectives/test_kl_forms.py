"""What the forms of KL are worth, by enumeration of a small distribution: no sampling, no tolerance for luck."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agentrl.errors import UserError
from agentrl.objectives import Clipped, Entries
from agentrl.objectives.divergence import estimate, to_go
from tests.objectives.plain import random_entries

LOGITS = [0.3, -1.2, 0.9, 0.0, -0.4]
ANCHOR = [0.1, 0.2, -0.7, 0.5, 0.0]


def policy() -> tuple[Tensor, Tensor, Tensor]:
    """The logits, and the log-probs of all tokens under policy and anchor."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    return logits, logits.log_softmax(0), torch.tensor(ANCHOR, dtype=torch.float64).log_softmax(0)


def expected_gradient(form: Any) -> list[float]:
    """Of the form as a loss, over tokens drawn from the policy: what a learner does on average."""
    logits, logprobs, anchor = policy()
    weighted = (logprobs.detach().exp() * estimate(form, logprobs, anchor)).sum()
    return torch.autograd.grad(weighted, logits)[0].tolist()


def exact_gradient(forward: bool) -> list[float]:
    """Of KL(pi || anchor), or of the other direction."""
    logits, logprobs, anchor = policy()
    kl = (anchor.exp() * (anchor - logprobs)).sum() if forward else (logprobs.exp() * (logprobs - anchor)).sum()
    return torch.autograd.grad(kl, logits)[0].tolist()


@pytest.mark.parametrize("form", ["k1", "k3"])
def test_k1_and_k3_are_the_divergence_on_average_and_k2_is_not(form: Any) -> None:
    _, logprobs, anchor = policy()
    kl = (logprobs.exp() * (logprobs - anchor)).sum().item()
    assert (logprobs.exp() * estimate(form, logprobs, anchor)).sum().item() == pytest.approx(kl, abs=1e-14)
    assert abs((logprobs.exp() * estimate("k2", logprobs, anchor)).sum().item() - kl) > 1e-3


def test_k1_as_a_loss_pulls_nowhere() -> None:
    assert expected_gradient("k1") == pytest.approx([0.0] * 5, abs=1e-15)


def test_k2_as_a_loss_has_the_gradient_of_the_divergence() -> None:
    assert expected_gradient("k2") == pytest.approx(exact_gradient(forward=False), abs=1e-15)


def test_k3_as_a_loss_has_the_gradient_of_the_other_direction() -> None:
    assert expected_gradient("k3") == pytest.approx(exact_gradient(forward=True), abs=1e-15)
    assert max(abs(a - b) for a, b in zip(expected_gradient("k3"), exact_gradient(forward=False), strict=True)) > 0.01


def test_in_the_reward_k1_has_the_gradient_of_the_divergence_of_whole_rows() -> None:
    """Rows of two tokens, the second drawn from what the first has led to: all 9, each as often as it would be drawn."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64).requires_grad_()  # line 0, then line 1 + first token
    anchor = torch.randn(4, 3, generator=rng, dtype=torch.float64).log_softmax(1)
    logprobs = logits.log_softmax(1)
    kl, found = torch.zeros((), dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            drawn = torch.stack((logprobs[0, first], logprobs[1 + first, second]))
            reference = torch.stack((anchor[0, first], anchor[1 + first, second]))
            kl = kl + drawn.sum().exp() * (drawn - reference).sum()
            same = torch.zeros(2, dtype=torch.int64)
            entries = Entries(drawn, drawn.detach(), 0 * reference, 1 + 0 * reference, same, same, same, 1, None, reference)
            loss, _ = Clipped(kl=1.0, kl_form="reward", aggregate="row", length=1)(entries)
            grad = torch.autograd.grad(loss, logits, retain_graph=True)[0]
            found += drawn.detach().sum().exp() * grad
    wanted = torch.autograd.grad(kl, logits)[0]
    assert found.flatten().tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-14)


def test_to_go_sums_over_the_later_tokens_of_the_row() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert to_go(values, torch.tensor([0, 0, 1, 1, 1])).tolist() == [3.0, 2.0, 28.0, 24.0, 16.0]
    assert to_go(values, torch.tensor([2, 0, 2, 0, 2])).tolist() == [21.0, 10.0, 20.0, 8.0, 16.0]


def test_no_token_pulls_more_than_the_clamp_lets_it() -> None:
    far = torch.tensor([-60.0, 0.0], dtype=torch.float64, requires_grad=True)
    near = torch.tensor([0.0, -60.0], dtype=torch.float64)
    for form, wanted in (("k1", [-20.0, 20.0]), ("k2", [200.0, 200.0]), ("k3", [10.0, 10.0])):
        values = estimate(form, far, near)
        assert values.tolist() == pytest.approx(wanted)
        assert torch.autograd.grad(values.sum(), far)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("form", ["k1", "k2", "k3", "reward"])
def test_kl_without_a_reference_is_refused_in_words(form: Any) -> None:
    entries = replace(random_entries(1), reference=None)
    with pytest.raises(UserError, match=r'against a reference policy and there is none; .* or take kl_to="behaviour"'):
        Clipped(kl=0.1, kl_form=form)(entries)
    assert Clipped(kl=0.1, kl_form=form).needs_reference
    assert not Clipped(kl_form=form).needs_reference and not Clipped(kl=0.1, kl_to="behaviour").needs_reference
    assert Clipped(kl_form=form)(entries)[0].isfinite()
