from __future__ import annotations

import math

import pytest
import torch

from agentrl.errors import UserError
from agentrl.learning import AdamW, Constant, Cosine, Linear, Muon
from agentrl.learning.updates import orthogonal

SHAPES = {
    "model.embed_tokens.weight": (20, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
}


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def after(optimiser, updates=5):
    weights, state = drawn(0), {}
    for number in range(updates):
        optimiser.update(weights, drawn(number + 1), state, number)
    return weights


def after_torch(make, updates=5, rates=None):
    weights = {name: torch.nn.Parameter(tensor) for name, tensor in drawn(0).items()}
    peers = make(weights)
    for number in range(updates):
        for name, gradient in drawn(number + 1).items():
            weights[name].grad = gradient
        for peer in peers:
            if rates is not None:
                peer.param_groups[0]["lr"] = rates[number]
            peer.step()
    return {name: tensor.detach() for name, tensor in weights.items()}


def check_close(got, expected, **tolerance):
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def test_adamw_is_torchs():
    mine = after(AdamW(lr=0.01, betas=(0.8, 0.95), weight_decay=0.1))
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    check_close(mine, after_torch(lambda w: [torch.optim.AdamW(w.values(), **settings)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_for_hidden_matrices_and_adamw_for_the_rest(adjust, nesterov):
    mine = after(Muon(lr=0.02, adamw_lr=0.003, weight_decay=0.1, adjust=adjust, nesterov=nesterov))

    def peers(weights):
        hidden = [tensor for name, tensor in weights.items() if "layers" in name]
        rest = [tensor for name, tensor in weights.items() if "layers" not in name]
        return (
            torch.optim.Muon(hidden, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust, nesterov=nesterov),
            torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), weight_decay=0.1),
        )

    # Both iterate in bfloat16, in products of other shapes: a step of 0.02 agrees to about one part in a hundred.
    check_close(mine, after_torch(peers), rtol=0.0, atol=2e-3)


def test_newton_schulz_brings_singular_values_near_one():
    matrices = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(matrices, 5).float())
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_a_schedule_moves_the_rate_of_every_part():
    schedule = Linear(steps=5)
    rates = [0.01 * schedule(number) for number in range(5)]
    mine = after(AdamW(lr=0.01, schedule=schedule))
    peer = after_torch(lambda w: [torch.optim.AdamW(w.values(), lr=0.01, weight_decay=0.0)], rates=rates)
    check_close(mine, peer, rtol=1e-5, atol=1e-6)
    assert Muon(schedule=Linear(steps=4)).rate(2) == pytest.approx(0.01)


def test_schedules_rise_and_fall_as_they_say():
    assert [Constant()(n) for n in (0, 5, 500)] == [1.0, 1.0, 1.0]
    assert [Constant(warmup=3)(n) for n in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [Linear(4)(n) for n in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [Linear(4, floor=0.5)(n) for n in (0, 2, 4, 9)] == [1.0, 0.75, 0.5, 0.5]
    assert [Cosine(4)(n) for n in (0, 2, 4, 9)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert Cosine(4)(1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    warm = [Cosine(10, warmup=4)(n) for n in range(11)]
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and warm[10] == pytest.approx(0.0)


def test_settings_without_meaning_are_refused():
    for make in (lambda: AdamW(lr=0.0), lambda: Muon(lr=-1.0), lambda: Muon(adjust="keller"), lambda: Linear(3, warmup=3)):
        with pytest.raises(UserError):
            make()
