"""Rows learned together give the gradients of rows learned apart: one row, one causal forward over its whole path."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.credit import Credit, to_batch
from agentrl.episode import Group, Parent
from agentrl.learning import Row, TrainedTurn, attention, to_rows
from agentrl.learning.attention import LONG, LongPiece, PathAttention, ShortPieces, squares
from agentrl.learning.forward import score
from agentrl.learning.local import LocalLearner
from agentrl.learning.lora import LoRA
from agentrl.learning.packing import plan
from agentrl.objectives import Clipped
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import init_weights

WHOLE = 1 << 20
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def apart(config, tensors, row):
    """(log-probs, behaviour, advantage) of a row's trained tokens."""
    path = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
    out = logits(config, tensors, forward(config, tensors, path, torch.arange(len(path)), attend_causal))
    columns = [], [], []
    for trained in row.trained:
        turn = trained.turn
        end = row.episode.path_length(turn)
        start = end - len(turn.sampled_ids) + turn.forced
        scores = F.log_softmax(out[start - 1 : end - 1] / (turn.sampling.temperature or 1.0), -1)
        columns[0].append(scores.gather(1, path[start:end, None])[:, 0])
        columns[1].append(torch.from_numpy(turn.logprobs[turn.forced :].astype(np.float64)))
        columns[2].append(torch.from_numpy(trained.advantage[turn.forced :].astype(np.float64)))
    return tuple(torch.cat(column) for column in columns)


def clipped_sum(logprobs, behaviour, advantage, weight):
    """The surrogate written out: weight times the sum of max(-r A, -clip(r) A)."""
    ratio = (logprobs.double() - behaviour).exp()
    return weight * torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.28) * advantage).sum()


def together(config, tensors, rows, budget):
    """The same with shared prefixes, of each row: losses that share one graph."""
    layout = plan(rows, budget)
    flat = torch.cat([score(config, tensors, microbatch) for microbatch in layout.microbatches])
    logprobs = flat[torch.from_numpy(layout.scored)]
    columns = layout.entries
    losses = []
    for number, row in enumerate(rows):
        own = torch.from_numpy(np.flatnonzero(columns.path == number))
        parts = (torch.from_numpy(column)[own] for column in (columns.behaviour, columns.advantage))
        losses.append(clipped_sum(logprobs[own], *parts, row.weight))
    return losses


def assert_same(ours, theirs):
    """Each tensor's gradient, relative to its norm; to rounding of the whole if it is zero but for rounding."""
    whole = torch.cat([grad.flatten() for grad in theirs]).norm()
    tolerance, rounding = TOLERANCE[whole.dtype], 50 * torch.finfo(whole.dtype).eps
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= tolerance * other.norm() + rounding * whole


def check(config, tensors, rows, budget=WHOLE, each=True):
    """Row by row (`each`), and the sum over rows."""
    learned = [tensor for tensor in tensors.values() if tensor.requires_grad]
    theirs = [torch.autograd.grad(clipped_sum(*apart(config, tensors, row), row.weight), learned) for row in rows]
    losses = together(config, tensors, rows, budget)
    if each:
        for loss, expected in zip(losses, theirs, strict=True):
            assert_same(torch.autograd.grad(loss, learned, retain_graph=True), expected)
    total = [torch.stack(grads).sum(0) for grads in zip(*theirs, strict=True)]
    assert_same(torch.autograd.grad(sum(losses), learned), total)


def weights_of(config, dtype, seed=3):
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in init_weights(config, seed, std=0.2).items()}


def own_credit(rows, seed=0):
    """Advantages and a weight of its own for every row, whatever turns it shares."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            row,
            trained=tuple(
                TrainedTurn(t.turn, rng.normal(size=len(t.turn.sampled_ids)).astype(np.float32)) for t in row.trained
            ),
            weight=float(rng.uniform(0.2, 2)),
        )
        for row in rows
    ]


@pytest.fixture(scope="session")
def long_tree(turn, episode):
    """Four leaves of different lengths on a trunk longer than a padded piece, one fork inside the trunk's sampled tokens."""
    rng = np.random.default_rng(5)
    draw = lambda count: rng.integers(0, 96, count).tolist()  # noqa: E731
    turns = [turn("0", draw(10), draw(LONG + 30))]
    for number, (kept, count) in enumerate([(LONG + 40, 60), (LONG + 40, LONG + 5), (LONG + 40, 61), (LONG - 9, 40)], 1):
        turns.append(turn(str(number), draw(3), draw(count), Parent("0", kept), number))
    return episode("long", turns)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("budget", [1, 40, WHOLE])
def test_every_row_has_the_gradient_that_it_has_alone(config, batch_rows, dtype, budget):
    check(config(), weights_of(config(), dtype), own_credit(batch_rows), budget)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_so_it_has_in_a_tree_of_long_pieces(config, long_tree, rows_of, dtype, kv_heads):
    rows = own_credit([row for row in rows_of(long_tree) if row.leaf.parent.kept > LONG])
    partial = long_tree.turns[-1]
    rows.append(Row(long_tree, partial, (TrainedTurn(partial, np.ones(40, np.float32)),), 0.5))
    settings_ = config(kv_heads=kv_heads)
    check(settings_, weights_of(settings_, dtype), rows)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=9), min_size=1, max_size=7),
    st.integers(0, 99),
    st.integers(1, 40),
)
def test_so_it_has_whatever_the_paths_share(config, turn, episode, paths, seed, budget):
    """Ids of three letters: paths fork anywhere, are equal, or begin one another."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, ids in enumerate(paths):
        start = int(rng.integers(1, len(ids)))
        leaf = turn(str(number), ids[:start], ids[start:], index=number)
        advantage = rng.normal(size=len(ids) - start).astype(np.float32)
        rows.append(Row(episode(f"e{number}", [leaf]), leaf, (TrainedTurn(leaf, advantage),), float(rng.uniform(0.1, 3))))
    settings_ = config(layers=1, vocab_size=5)
    check(settings_, weights_of(settings_, torch.float64), rows, budget)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=9), st.integers(0, 99), st.integers(1, 60))
def test_so_it_has_in_any_tree_of_turns(config, tree, rows_of, parents, seed, budget):
    shape = [None if number == 0 else parent % number for number, parent in enumerate(parents)]
    check(
        config(layers=1), weights_of(config(layers=1), torch.float64), own_credit(rows_of(tree("e", seed, shape)), seed), budget
    )


def test_a_turn_may_have_another_advantage_in_each_row(config, tree):
    """`Credit.by_row`, from the estimator's columns to the gradient."""
    run = tree("e", 4, (None, 0, 0, 1))
    batch = to_batch([Group("g", None, (run,), 1)])
    plain = Credit(batch.turns, np.linspace(-1, 1, len(batch.turns)))
    credit = replace(plain, by_row={(0, "2"): 5.0, (0, "3"): -3.0})
    rows = to_rows(batch, credit)
    assert [float(row.trained[0].advantage[0]) for row in rows] == [5.0, -3.0]
    check(config(), weights_of(config(), torch.float64), rows)


@pytest.mark.parametrize("budget", [30, WHOLE])
def test_adapters_learn_the_same(model, batch_rows, budget):
    rows = own_credit(batch_rows)
    learner = LocalLearner("p", model, Clipped(), lora=LoRA(rank=2), microbatch_tokens=budget)
    rng = torch.Generator().manual_seed(0)
    trained = {name: 0.1 * torch.randn(x.shape, generator=rng, dtype=torch.float64) for name, x in learner._trained.items()}
    trained = {name: tensor.requires_grad_() for name, tensor in trained.items()}
    frozen = {name: tensor.double() for name, tensor in learner._weights.items()}
    tensors = learner._forward.adapted(frozen, trained, learner.lora.scale)
    learned = list(trained.values())
    theirs = sum(clipped_sum(*apart(learner.config, tensors, row), row.weight) for row in rows)
    ours = sum(together(learner.config, tensors, rows, budget))
    assert_same(torch.autograd.grad(ours, learned, retain_graph=True), torch.autograd.grad(theirs, learned))


@pytest.mark.parametrize("budget", [30, WHOLE])
def test_the_learner_steps_on_a_tree_as_on_its_paths_apart(model, tree, rows_of, budget):
    """The loss and its gradient's norm, float32."""
    rows = own_credit(rows_of(tree("e", 2, (None, 0, 0, 1, 1, 2))))
    chains = []
    for number, row in enumerate(rows):
        turns = tuple(item.turn for item in row.trained)
        chains.append(replace(row, episode=replace(row.episode, id=f"c{number}", turns=turns)))
    one = LocalLearner("p", model, Clipped(aggregate="row"), microbatch_tokens=budget)
    other = LocalLearner("p", model, Clipped(aggregate="row"), microbatch_tokens=1)  # each path for itself
    ours, theirs = one.step(rows), other.step(chains)
    assert ours.tokens < theirs.tokens
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
    assert ours.metrics["grad_norm"] == pytest.approx(theirs.metrics["grad_norm"], rel=1e-5)


def test_two_steps_on_a_tree_have_the_same_bits(model, long_tree, rows_of):
    rows = own_credit([row for row in rows_of(long_tree) if row.leaf.parent.kept > LONG])
    digests = set()
    for _ in range(2):
        learner = LocalLearner("p", model, Clipped(), threads=2)
        learner.step(rows)
        digests.add(learner.version.digest)
    assert len(digests) == 1


def test_every_pair_of_a_token_and_one_before_it_is_computed_once(batch_rows):
    for microbatch in plan(batch_rows, 60).microbatches:
        count = len(microbatch.ids)
        seen = np.zeros((count, count), dtype=np.int64)
        for start, end in zip(microbatch.pieces[:-1], microbatch.pieces[1:], strict=True):
            seen[start:end, start:end] += np.tri(end - start, dtype=np.int64)
        for block in microbatch.blocks:
            seen[block.queries, block.keys] += 1
        assert seen.max() == 1
        assert (seen.sum(1) == microbatch.positions + 1).all()
        for piece in range(len(microbatch.pieces) - 1):
            path = microbatch.path(piece)
            assert (microbatch.positions[path] == np.arange(len(path))).all()
            assert (np.flatnonzero(seen[path[-1]]) == path).all()


def test_the_longest_branch_goes_on_with_the_piece_before_the_fork(turn, episode, rows_of):
    """A comb with its trunk in any place is one piece for the trunk, one for each tooth, one block a tooth."""
    for letters in ((1, 2), (2, 1)):
        trunk = [letters[0]] * 24
        paths = [trunk, *(trunk[:at] + [letters[1]] * 3 for at in (4, 8, 12, 16))]
        rows = [rows_of(episode(f"e{n}", [turn("0", ids[:1], [*ids[1:], 0])]))[0] for n, ids in enumerate(paths)]
        microbatch = plan(rows, WHOLE).microbatches[0]
        assert np.diff(microbatch.pieces).tolist() == [24, 3, 3, 3, 3]
        assert sorted(block.keys for block in microbatch.blocks) == [slice(0, at) for at in (4, 8, 12, 16)]


def test_short_pieces_are_padded_with_others_of_nearly_their_length():
    lengths = np.array([5, 100, 6, LONG, 110, 40, 3 * LONG, 5])
    found = squares(np.cumsum([0, *lengths]))
    long = [square.tokens for square in found if isinstance(square, LongPiece)]
    short = [square for square in found if isinstance(square, ShortPieces)]
    assert [tokens.stop - tokens.start for tokens in long] == [LONG, 3 * LONG]
    assert [(square.pieces, square.length) for square in short] == [(3, 6), (1, 40), (2, 110)]
    covered = torch.cat([torch.arange(999)[tokens] for tokens in long] + [square.own for square in short])
    assert sorted(covered.tolist()) == list(range(lengths.sum()))


def test_without_grouped_heads_in_the_kernel_keys_are_repeated(config, batch_rows, monkeypatch):
    """As before torch 2.9."""
    monkeypatch.setattr(attention, "GROUPED", False)
    check(config(), weights_of(config(), torch.float64), batch_rows, each=False)


def test_what_stands_in_padding_reaches_no_gradient(batch_rows):
    """Log-sums of several hundred would overflow if padding took part."""
    microbatch = plan(batch_rows, WHOLE).microbatches[0]
    assert any(isinstance(square, ShortPieces) and len(square.padding) for square in squares(microbatch.pieces))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(microbatch.ids), 2, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    q = (60 * q).requires_grad_()
    k.requires_grad_()
    grads = torch.autograd.grad(PathAttention(microbatch)(0, q, k, v).sum(), (q, k))
    assert all(bool(grad.isfinite().all()) for grad in grads)
