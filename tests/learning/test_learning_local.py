from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from agentrl.episode import Column, Sampling, Version
from agentrl.errors import LearnerError, UserError
from agentrl.learning import AdamW, Muon, Row, TrainedTurn
from agentrl.learning.local import LocalLearner
from agentrl.objectives import NLL, Clipped
from agentrl.transformer.weights import digest_weights, init_weights, save_weights


def copied(learner):
    return {name: tensor.clone() for name, tensor in learner.weights().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def changed_rows(rows, **fields):
    """The rows with their turns' fields replaced."""
    result = []
    for row in rows:
        turns = tuple(replace(turn, **fields) for turn in row.episode.turns)
        episode = replace(row.episode, turns=turns)
        trained = tuple(TrainedTurn(episode.by_id[item.turn.id], item.advantage) for item in row.trained)
        result.append(Row(episode, episode.by_id[row.leaf.id], trained, row.weight))
    return result


def test_steps_bring_the_likelihood_of_demonstrations_up(model, batch_rows):
    learner = LocalLearner("p", model, NLL(), optimiser=Muon(adamw_lr=0.01))
    losses = [learner.step(batch_rows).loss for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_positive_advantage_makes_a_turn_likelier_and_a_negative_one_rarer(model, tree, rows_of):
    row = rows_of(tree("e", 0, (None, 0)))[0]
    first, second = row.trained
    signed = (
        replace(first, advantage=np.ones(len(first.advantage), np.float32)),
        replace(second, advantage=-np.ones(len(second.advantage), np.float32)),
    )
    learner = LocalLearner("p", model, Clipped(), optimiser=AdamW(1e-3))
    before = learner.logprobs([row])[0]
    known = replace(row.episode, turns=tuple(replace(t.turn, logprobs=b) for t, b in zip(signed, before, strict=True)))
    rows = [Row(known, known.turns[1], tuple(TrainedTurn(t, s.advantage) for t, s in zip(known.turns, signed, strict=True)))]
    stats = learner.step(rows)
    assert stats.metrics["gap/max"] < 1e-6
    assert stats.metrics["ratio/mean"] == pytest.approx(1.0)
    after = learner.logprobs([row])[0]
    assert after[0].sum() > before[0].sum()
    assert after[1].sum() < before[1].sum()


def test_a_step_tells_what_it_did(model, batch_rows):
    learner = LocalLearner("p", model, Clipped(), optimiser=AdamW(1e-3), lineage="run7")
    assert learner.version == Version("run7", "p", 0, digest_weights(learner.weights()))
    stats = learner.step(batch_rows)
    assert learner.version == Version("run7", "p", 1, digest_weights(learner.weights()))
    assert stats.rows == len(batch_rows)
    assert stats.trained_tokens == sum(len(item.turn.sampled_ids) for row in batch_rows for item in row.trained)
    assert stats.tokens < sum(row.episode.path_length(row.leaf) for row in batch_rows)
    assert stats.metrics["lr"] == 1e-3
    assert stats.metrics["grad_norm"] > 0
    assert set(learner.seconds) == {"packing", "forward", "backward", "optimiser"}


def test_the_loss_does_not_depend_on_how_the_step_is_cut(model, batch_rows):
    objective = Clipped(kl=0.1, kl_to="behaviour", aggregate="row", ratio="sequence")
    whole, cut = LocalLearner("p", model, objective), LocalLearner("p", model, objective, microbatch_tokens=30)
    one, other = whole.step(batch_rows), cut.step(batch_rows)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.metrics["grad_norm"] == pytest.approx(one.metrics["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("settings", [{}, {"kl": 0.5, "kl_to": "behaviour"}])
def test_rows_without_advantage_count_and_cost_no_backward_pass(model, batch_rows, settings, monkeypatch):
    quiet = [
        replace(row, trained=tuple(replace(t, advantage=t.advantage * (number % 3 == 0)) for t in row.trained))
        for number, row in enumerate(batch_rows)
    ]
    apart, together = (LocalLearner("p", model, Clipped(**settings), optimiser=AdamW(1e6, eps=1e6)) for _ in range(2))
    monkeypatch.setattr(Clipped, "idle_at_zero", True)  # with a KL it is not: the gradient must be carried back all the same
    stats = apart.step(quiet)
    assert [microbatch.idle for microbatch in apart._layout(quiet).microbatches] == [False, True]
    monkeypatch.setattr(Clipped, "idle_at_zero", False)
    expected = together.step(quiet)
    assert len(together._layout(quiet).microbatches) == 1
    assert stats.trained_tokens == expected.trained_tokens
    assert stats.loss == pytest.approx(expected.loss, rel=1e-6)
    assert stats.metrics["gap/mean"] == pytest.approx(expected.metrics["gap/mean"], rel=1e-6)
    for name, tensor in together.weights().items():
        torch.testing.assert_close(apart.weights()[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_step_without_any_advantage_leaves_the_weights_where_they_are(model, batch_rows):
    quiet = [replace(r, trained=tuple(replace(t, advantage=0 * t.advantage) for t in r.trained)) for r in batch_rows]
    for budget in (30, 8192):
        learner = LocalLearner("p", model, Clipped(), microbatch_tokens=budget)
        before = copied(learner)
        stats = learner.step(quiet)
        assert (stats.loss, stats.metrics["grad_norm"]) == (0.0, 0.0)
        assert same(before, learner.weights())
        assert learner.version.step == 1


def test_entropy_reaches_the_objective_with_its_gradient(model, batch_rows):
    no_credit = [replace(r, trained=tuple(replace(t, advantage=0 * t.advantage) for t in r.trained)) for r in batch_rows]
    learner = LocalLearner("p", model, Clipped(entropy=1.0), optimiser=AdamW(1e-2))
    seen = [learner.step(no_credit).metrics["entropy"] for _ in range(5)]
    assert seen[-1] > seen[0]


def test_a_recorded_reference_is_what_the_kl_is_against(model, tree, rows_of):
    row = rows_of(tree("e", 0, (None, 0)))[0]
    learner = LocalLearner("p", model, Clipped(kl=0.1))
    own = learner.logprobs([row])[0]
    for offset, expected in ((0.0, 0.0), (-0.5, math.exp(-0.5) + 0.5 - 1)):
        turns = tuple(
            replace(turn, columns={"reference": Column("reference", values + np.float32(offset))})
            for turn, values in zip(row.episode.turns, own, strict=True)
        )
        episode = replace(row.episode, turns=turns)
        given = Row(episode, turns[-1], tuple(TrainedTurn(t, s.advantage) for t, s in zip(turns, row.trained, strict=True)))
        stats = LocalLearner("p", model, Clipped(kl=0.1)).step([given])
        assert stats.metrics["kl/reference"] == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_scaled_down_to_its_bound(model, batch_rows):
    # With rate and eps this large AdamW moves each weight by its gradient.
    optimiser = AdamW(lr=1e6, eps=1e6)
    free, bound = (LocalLearner("p", model, NLL(), optimiser=optimiser, max_grad_norm=norm) for norm in (None, 0.5))
    start = copied(free)
    norm = free.step(batch_rows).metrics["grad_norm"]
    assert bound.step(batch_rows).metrics["grad_norm"] == norm > 0.5
    moved, less = (torch.cat([(w.weights()[n] - start[n]).flatten() for n in start]) for w in (free, bound))
    assert moved.norm().item() == pytest.approx(norm, rel=1e-4)
    torch.testing.assert_close(less, moved * (0.5 / norm), rtol=1e-3, atol=1e-6)


def test_threads_are_set_for_the_step_alone(model, batch_rows):
    torch.set_num_threads(1)
    LocalLearner("p", model, NLL(), threads=2).step(batch_rows)
    assert torch.get_num_threads() == 1


@dataclass(frozen=True)
class Broken:
    """An objective that fails in a given way."""

    kind: str
    needs_behaviour: bool = False

    def __call__(self, entries):
        total = entries.logprobs.sum()
        if self.kind == "nan":
            return total * float("nan"), {}
        if self.kind == "slope":
            return (entries.logprobs[3:5] * 0).sqrt().sum(), {}
        if self.kind == "overflow":
            return total * 1e300, {}
        return total.detach(), {}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"step 1 of p: the loss is nan; weights are unchanged. Rows: 0 \(episode chain0\)"),
        ("slope", r"step 1 of p: the objective's gradient is not finite; weights are unchanged. Rows: 0 \(episode chain0\)\."),
        ("overflow", r"step 1 of p: the gradient is not finite"),
        ("detached", "does not depend on the log-probs"),
    ],
)
def test_what_is_not_finite_stops_the_step_before_the_weights_change(model, batch_rows, kind, message):
    learner = LocalLearner("p", model, Broken(kind))
    before, version = copied(learner), learner.version
    with pytest.raises(LearnerError, match=message):
        learner.step(batch_rows)
    assert same(before, learner.weights())
    assert learner.version == version
    learner.objective = NLL()
    clean = LocalLearner("p", model, NLL())
    assert learner.step(batch_rows).loss == clean.step(batch_rows).loss
    assert same(clean.weights(), learner.weights())


def test_the_row_that_poisons_a_step_is_named(tmp_path, config, batch_rows):
    shape = config(tied=False)
    weights = init_weights(shape, 0)
    inputs = [row.episode.path(row.leaf)[:-1].tolist() for row in batch_rows]
    bad = min(inputs[4], key=lambda token: sum(token in path for path in inputs))
    weights["model.embed_tokens.weight"][bad] = float("inf")
    save_weights(tmp_path, shape, weights)
    only = [number for number, path in enumerate(inputs) if bad in path]
    assert len(only) < 4
    named = ", ".join(f"{number} (episode {batch_rows[number].episode.id})" for number in only)
    with pytest.raises(LearnerError, match=re.escape(f"the loss is nan; weights are unchanged. Rows: {named}.")):
        LocalLearner("p", tmp_path, NLL()).step(batch_rows)


def test_rows_that_cannot_be_trained_are_refused_by_name(model, batch_rows):
    learner = LocalLearner("p", model, Clipped())
    unknown = np.full(3, np.nan, np.float32)
    row = batch_rows[0]
    turn = replace(row.episode.turns[0], sampled_ids=row.episode.turns[0].sampled_ids[:1], logprobs=unknown[:1])
    episode = replace(row.episode, turns=(turn,))
    lacking = [Row(episode, turn, (TrainedTurn(turn, np.ones(1, np.float32)),))]
    with pytest.raises(UserError, match="row 0: turn 0 lacks the behaviour log-probs of 1 of its 1 drawn tokens"):
        learner.step(lacking)
    assert LocalLearner("p", model, NLL()).step(lacking).trained_tokens == 1
    with pytest.raises(UserError, match="turn 0 is of policy 'p', this learner's is 'q'"):
        LocalLearner("q", model, Clipped()).step(batch_rows)
    masked = {"logprobs_at": "after_mask", "sampling": Sampling(top_p=0.9)}
    with pytest.raises(UserError, match="after top-k or top-p"):
        learner.step(changed_rows(batch_rows, **masked))
    with pytest.raises(UserError, match="turn 0 has media"):
        learner.step(changed_rows(batch_rows, media=("ab12",)))
    foreign = np.full(1, 96, np.int32)
    with pytest.raises(UserError, match="token id 96 is outside the vocabulary of 96"):
        learner.step(changed_rows(lacking, sampled_ids=foreign, logprobs=np.zeros(1, np.float32)))
    with pytest.raises(UserError, match="at least one trained token"):
        learner.step([])
    assert learner.version.step == 0


PROGRAM = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from conftest import make_rows, make_tree
from agentrl.learning import Muon
from agentrl.learning.local import LocalLearner
from agentrl.objectives import Clipped
episodes = [make_tree(f"e{i}", i, (None, 0, 0, 1), prompt=(1, 2, 3)) for i in range(12)]
rows = [row for seed, episode in enumerate(episodes) for row in make_rows(episode, seed)]
learner = LocalLearner("p", sys.argv[1], Clipped(), threads=int(sys.argv[3]), microbatch_tokens=int(sys.argv[4]))
losses = [learner.step(rows).loss for _ in range(3)]
print(*map(repr, losses), learner.version)
"""


@pytest.mark.parametrize(("threads", "budget"), [(1, 8192), (2, 100)])
def test_fresh_processes_reach_the_same_weights_to_the_bit(model, request, threads, budget):
    here = str(request.path.parent)
    arguments = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(model), here, str(threads), str(budget)]
    runs = [subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0].count("@3#") == 1
