"""The learner of a critic: its gradient against a plain torch module, its loss, what it sees, bits and bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agentrl.credit import to_batch
from agentrl.episode import Group
from agentrl.errors import LearnerError, UserError
from agentrl.learning import AdamW, Critic, Muon, Row, TrainedTurn
from agentrl.learning.critic import chained, critic_rows
from agentrl.learning.packing import plan
from agentrl.learning.values import BIAS, WEIGHT, ValueForward, ValueLearner, ValueLoss
from agentrl.objectives.contract import Entries
from agentrl.transformer.layers import attend_causal, forward
from agentrl.transformer.weights import init_weights


def critic(model: Any, **fields: Any) -> ValueLearner:
    return ValueLearner(model, Critic(**({"optimiser": AdamW(3e-3)} | fields)), lineage="run")


def entries(value: torch.Tensor, old: torch.Tensor, target: torch.Tensor) -> Entries:
    zeros = torch.zeros(len(value), dtype=torch.int64)
    return Entries(value, old, target, torch.ones(len(value)), zeros, zeros, zeros, 1)


def plain_loss(value: torch.Tensor, old: torch.Tensor, target: torch.Tensor, clip: float) -> torch.Tensor:
    clipped = torch.clamp(value, old - clip, old + clip)
    return 0.5 * torch.mean(torch.max((value - target) ** 2, (clipped - target) ** 2))


def test_the_gradient_is_that_of_a_plain_torch_module_on_each_row_alone(config, batch_rows):
    tensors = {name: tensor.double().requires_grad_() for name, tensor in init_weights(config(), 3, std=0.2).items()}
    head = torch.nn.Linear(config().hidden_size, 1, dtype=torch.float64)
    expected: list[torch.Tensor] = []
    for row in batch_rows:
        ids = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
        values = head(forward(config(), tensors, ids, torch.arange(len(ids)), attend_causal))[:, 0]
        for trained in row.trained:
            end = row.episode.path_length(trained.turn)
            expected.append(values[end - len(trained.turn.sampled_ids) - 1 : end - 1])
    value = torch.cat(expected)
    generator = torch.Generator().manual_seed(0)
    old, target = (torch.randn(len(value), generator=generator, dtype=torch.float64) for _ in range(2))
    loss = plain_loss(value, old, target, 0.2)
    theirs = torch.autograd.grad(loss, [*tensors.values(), head.weight, head.bias])

    tensors |= {WEIGHT: head.weight.detach()[0].clone(), BIAS: head.bias.detach()[0].clone()}
    for tensor in tensors.values():
        tensor.requires_grad_()
    layout = plan(batch_rows, 40)
    flat = torch.cat([ValueForward(config()).score(tensors, microbatch) for microbatch in layout.microbatches])
    ours, metrics = ValueLoss(clip=0.2)(entries(flat[torch.from_numpy(layout.scored)], old, target))
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=0)
    assert 0 < metrics["clip/fraction"] < 1
    whole = torch.cat([grad.flatten() for grad in theirs]).norm()
    for name, grad, wanted in zip(tensors, torch.autograd.grad(ours, list(tensors.values())), theirs, strict=True):
        assert (grad - wanted.reshape(grad.shape)).norm() < 1e-9 * wanted.norm() + 1e-13 * whole, name


def test_without_a_clip_the_loss_is_half_the_mean_square_and_tells_the_variance_explained():
    value, target = torch.tensor([0.0, 1.0, 4.0]), torch.tensor([0.0, 2.0, 4.0])
    loss, metrics = ValueLoss(clip=None)(entries(value, value, target))
    assert float(loss) == pytest.approx(1 / 6)
    assert metrics["explained_variance"] == pytest.approx(1 - (2 / 9) / (8 / 3))
    _, metrics = ValueLoss(clip=None)(entries(value, value, torch.ones(3)))
    assert "explained_variance" not in metrics, "returns that are all equal leave nothing to explain"


def test_the_first_values_are_0_and_steps_bring_them_to_the_returns(model, batch_rows):
    learner = critic(model)
    assert all((trained.advantage == 0).all() for row in learner.values(batch_rows, "token") for trained in row.trained)
    stats = [learner.step(batch_rows) for _ in range(12)]
    assert stats[-1].loss < 0.3 * stats[0].loss
    assert stats[-1].metrics["explained_variance"] > 0.5


def test_values_are_of_the_place_before_each_drawn_token_however_rows_are_packed(model, tree, rows_of):
    learner = critic(model)
    learner.step(rows_of(tree("e", 1, (None, 0))))
    row = rows_of(tree("f", 4, (None, 0), forced=1))[0]
    (by_turn,), (by_token,) = learner.values([row], "turn"), learner.values([row], "token")
    for turn, token in zip(by_turn.trained, by_token.trained, strict=True):
        assert turn.advantage.shape == token.advantage.shape == (len(turn.turn.sampled_ids),)
        assert token.advantage[0] == 0, "a forced token has none"
        assert set(turn.advantage.tolist()) == {float(token.advantage[1])}
    cut = ValueLearner(model, learner.critic, microbatch_tokens=1)
    cut.step(rows_of(tree("e", 1, (None, 0))))
    for one, other in zip(cut.values([row], "token")[0].trained, by_token.trained, strict=True):
        np.testing.assert_allclose(one.advantage, other.advantage, atol=1e-5)


def test_over_turns_one_return_a_turn_is_learned_before_its_first_drawn_token(model, tree):
    batch = to_batch([Group("g", None, (tree("e", 0, (None, 0, 1)),), 1)])
    by_turn = critic_rows(batch, np.array([1.0, 2.0, 3.0]), "path")
    assert [trained.places.tolist() for row in by_turn for trained in row.trained] == [[0], [0], [0]]
    assert critic(model).step(by_turn).trained_tokens == 3
    by_token = critic_rows(batch, [np.ones(length) for length in batch.turns.length.tolist()], "path")
    assert critic(model).step(by_token).trained_tokens == batch.turns.length.sum()


def test_a_turn_that_several_paths_share_is_learned_once(tree):
    batch = to_batch([Group("g", None, (tree("e", 0, (None, 0, 0, 1)),), 1)])
    for sees in ("path", "episode"):
        rows = critic_rows(batch, np.zeros(4), sees)
        assert sorted(trained.turn.id for row in rows for trained in row.trained) == ["0", "1", "2", "3"]


def two_agents(episode, turn, said_by_a):
    """a speaks, then b in a context of its own, which does not hold what a said."""
    turns = [turn("0", [1, 2], said_by_a, agent="a"), turn("1", [3, 4, 5], [6, 7], agent="b", policy="q")]
    return episode("e", turns)


def test_a_centralised_critic_sees_what_the_others_said_and_another_one_does_not(model, episode, turn):
    values: dict[str, list[float]] = {"path": [], "episode": []}
    for sees, found in values.items():
        learner = critic(model, sees=sees)
        for said in ([8, 9], [8, 10]):
            batch = to_batch([Group("g", None, (two_agents(episode, turn, said),), 1)])
            if not found:
                learner.step(critic_rows(batch, np.array([1.0, 2.0]), sees))
            rows = learner.values(critic_rows(batch, np.zeros(2), sees), "turn")
            found.append(float(rows[-1].trained[-1].advantage[0]))
    assert values["path"][0] == values["path"][1]
    assert values["episode"][0] != values["episode"][1]


def test_chained_turns_stand_behind_all_that_was_issued_before_them(episode, turn):
    whole = two_agents(episode, turn, [8, 9])
    other = turn("2", [0], [0], tokenizer="another")
    whole = replace(whole, turns=(*whole.turns, other))
    row = chained(Row(whole, whole.turns[1], ()))
    assert row.episode.path(row.leaf).tolist() == [1, 2, 8, 9, 3, 4, 5, 6, 7]
    assert [each.id for each in row.episode.turns] == ["0", "1"]


@pytest.mark.parametrize("optimiser", [AdamW(1e-3), Muon()])
def test_a_critic_that_is_restored_goes_on_to_the_bit(model, batch_rows, tmp_path, optimiser):
    first = critic(model, optimiser=optimiser, epochs=2)
    first.step(batch_rows)
    first.save(tmp_path / "critic")
    again = critic(model, optimiser=optimiser, epochs=2)
    again.restore(tmp_path / "critic")
    assert again.version == first.version and again.version.step == 1 and again.updates == 2
    assert again.step(batch_rows) == first.step(batch_rows)
    assert again.version == first.version


def test_a_critic_may_start_from_anothers_checkpoint_with_its_head(model, batch_rows, tmp_path):
    first = critic(model)
    first.step(batch_rows)
    first.save(tmp_path / "critic")
    values, again = (each.values(batch_rows, "token") for each in (first, critic(tmp_path / "critic")))
    assert all((a.advantage == b.advantage).all() for a, b in zip(values[0].trained, again[0].trained, strict=True))
    assert any(trained.advantage.any() for trained in again[0].trained)


def test_another_head_is_another_version(model, batch_rows):
    one, other = critic(model), critic(model)
    with torch.no_grad():
        other._weights[BIAS] += 1  # pyright: ignore[reportPrivateUsage]
    assert one.step(batch_rows).loss != other.step(batch_rows).loss
    assert one.version.digest != other.version.digest


def test_a_critics_head_that_was_changed_on_the_disk_is_not_restored(model, batch_rows, tmp_path):
    first = critic(model)
    first.step(batch_rows)
    first.save(tmp_path / "critic")
    file = tmp_path / "critic" / "value_head.state"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LearnerError, match=r"value_head.state is not as it was saved"):
        critic(model).restore(tmp_path / "critic")


def test_from_the_second_epoch_on_the_clip_holds_values_back(model, batch_rows):
    rate = AdamW(3e-2)
    free, held = critic(model, optimiser=rate, epochs=4, clip=None), critic(model, optimiser=rate, epochs=4, clip=1e-3)
    assert free.step(batch_rows).loss == pytest.approx(held.step(batch_rows).loss)
    assert held.step(batch_rows).metrics["clip/fraction"] > 0.1
    once, plain = critic(model, epochs=1, clip=1e-3), critic(model, epochs=1, clip=None)
    assert once.step(batch_rows) == plain.step(batch_rows) and once.version == plain.version, "one update clips nothing"


def test_returns_that_are_not_finite_change_nothing(model, tree, rows_of):
    row = rows_of(tree("e", 0, (None,)))[0]
    broken = replace(row, trained=tuple(TrainedTurn(t.turn, np.full_like(t.advantage, np.inf)) for t in row.trained))
    learner = critic(model)
    before = learner.version
    with pytest.raises(LearnerError, match=r"step 1 of critic: the loss is inf; weights are unchanged"):
        learner.step([broken])
    assert learner.version == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 0}, r"Critic\(epochs=...\) must be at least 1, got 0"),
        ({"clip": 0.0}, r"Critic\(clip=...\) must be above 0, or None for none, got 0.0"),
        ({"max_grad_norm": -1.0}, r"Critic\(max_grad_norm=...\) must be above 0, or None for none, got -1.0"),
        ({"sees": "all"}, r"Critic\(sees=...\) is 'path' or 'episode', got 'all'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        Critic(**fields)
