"""Every combination of settings against the formula written out, its gradient included, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentrl.objectives import CISPO, Clipped, Entries, Masked, Truncated
from tests.objectives.plain import plain, random_entries

CORRECTIONS = (None, Truncated(1.3), Truncated(1.5, "sequence"), Masked(0.7, 1.4), Masked(0.0, 1.6, "sequence"))


@st.composite
def objectives(draw: Any) -> Clipped:
    kind = draw(st.sampled_from([Clipped, Clipped, CISPO]))
    form = draw(st.sampled_from(["k1", "k2", "k3", "reward"]))
    return kind(
        low=draw(st.sampled_from([0.0003, 0.2, 1.0])),
        high=draw(st.sampled_from([0.0004, 0.2, 0.28])),
        dual=None if kind is CISPO else draw(st.sampled_from([None, 1.1, 3.0])),
        ratio=draw(st.sampled_from(["token", "turn", "sequence"])),
        aggregate=draw(st.sampled_from(["token", "row", "episode"])),
        length=draw(st.sampled_from([None, 7.0])),
        kl=draw(st.sampled_from([0.0, 0.3])),
        kl_form=form,
        kl_to="reference" if form == "reward" else draw(st.sampled_from(["reference", "behaviour"])),
        entropy=draw(st.sampled_from([0.0, 0.1])),
        nll=draw(st.sampled_from([0.0, 0.2])),
        correction=draw(st.sampled_from(CORRECTIONS)),
    )


def gradients(loss: Tensor, entries: Entries) -> list[list[float]]:
    leaves = (entries.logprobs, entries.entropy)
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [grad.tolist() for grad in found]


@settings(max_examples=150, deadline=None)
@given(objectives(), st.integers(0, 10_000))
def test_loss_and_gradient_are_those_of_the_formula_written_out(objective: Clipped, seed: int) -> None:
    entries = random_entries(seed)
    loss, metrics = objective(entries)
    wanted = plain(objective, entries)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    if wanted.requires_grad:
        for got, written in zip(gradients(loss, entries), gradients(wanted, entries), strict=True):
            assert got == pytest.approx(written, abs=1e-12)
    assert all(isinstance(value, float) for value in metrics.values())


def permuted(entries: Entries, order: list[int]) -> tuple[Entries, Tensor]:
    """The same rows in another order: as the learner would lay them out. Also where each entry came from."""
    came = torch.cat([(entries.row == row).nonzero()[:, 0] for row in order])
    rename = torch.argsort(torch.tensor(order))

    def moved(column: Tensor | None) -> Any:
        return None if column is None else column.detach()[came]

    columns = {
        name: moved(getattr(entries, name)) for name in ("behaviour", "advantage", "weight", "turn", "reference", "entropy")
    }
    logprobs = moved(entries.logprobs).requires_grad_()
    return Entries(logprobs, row=rename[entries.row][came], episode=entries.episode[came], num_rows=4, **columns), came


@settings(max_examples=40, deadline=None)
@given(objectives(), st.integers(0, 10_000), st.permutations(range(4)))
def test_the_order_of_rows_changes_nothing(objective: Clipped, seed: int, order: list[int]) -> None:
    one = random_entries(seed)
    other, came = permuted(one, order)
    first, second = objective(one)[0], objective(other)[0]
    assert first.item() == pytest.approx(second.item(), abs=1e-12)
    if first.requires_grad:
        theirs = torch.autograd.grad(second, other.logprobs)[0].tolist()
        ours = torch.autograd.grad(first, one.logprobs)[0][came].tolist()
        assert ours == pytest.approx(theirs, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(objectives(), st.integers(0, 10_000), st.sampled_from([0.25, 3.0]))
def test_weights_are_relative(objective: Clipped, seed: int, factor: float) -> None:
    entries = random_entries(seed)
    scaled = replace(entries, weight=entries.weight * factor)
    assert objective(scaled)[0].item() == pytest.approx(objective(entries)[0].item(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["token", "row", "episode"]), st.sampled_from([None, 5.0]), st.integers(0, 10_000))
def test_without_penalties_the_loss_is_linear_in_the_scale_of_the_advantages(aggregate: Any, length: Any, seed: int) -> None:
    objective = Clipped(dual=3.0, aggregate=aggregate, length=length)
    entries = random_entries(seed)
    doubled = replace(entries, advantage=2 * entries.advantage)
    assert objective(doubled)[0].item() == pytest.approx(2 * objective(entries)[0].item(), abs=1e-12)
