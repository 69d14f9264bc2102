"""Packed log-probs and gradients against the plainest computation there is: every row alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.learning import kernels
from agentrl.learning.forward import score, score_with_entropy
from agentrl.learning.local import LocalLearner
from agentrl.learning.packing import plan
from agentrl.objectives import Clipped
from agentrl.transformer.layers import attend_causal, forward, logits
from agentrl.transformer.weights import init_weights, save_weights


def alone(config, tensors, row):
    """Log-probs and entropies of a row's trained tokens, from one causal forward over its path, a row by itself."""
    path = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
    out = logits(config, tensors, forward(config, tensors, path, torch.arange(len(path)), attend_causal))
    logprobs, entropies = [], []
    for trained in row.trained:
        end = row.episode.path_length(trained.turn)
        start = end - len(trained.turn.sampled_ids) + trained.turn.forced
        scores = F.log_softmax(out[start - 1 : end - 1] / (trained.turn.sampling.temperature or 1.0), -1)
        logprobs.append(scores.gather(1, path[start:end, None])[:, 0])
        entropies.append(-(scores.exp() * scores).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def doubles(config, seed=3):
    return {name: tensor.double().requires_grad_() for name, tensor in init_weights(config, seed, std=0.2).items()}


def gradients(tensors, scalar):
    grads = torch.autograd.grad(scalar, list(tensors.values()))
    return dict(zip(tensors, grads, strict=True))


def packed(config, tensors, rows, budget):
    layout = plan(rows, budget)
    flat = torch.cat([score(config, tensors, microbatch) for microbatch in layout.microbatches])
    return flat[torch.from_numpy(layout.scored)]


def check_equal(config, rows, budget=1 << 20):
    tensors = doubles(config)
    expected = torch.cat([alone(config, tensors, row)[0] for row in rows])
    got = packed(config, tensors, rows, budget)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    factors = torch.from_numpy(np.random.default_rng(0).normal(size=len(expected)))
    theirs, ours = (gradients(tensors, (factors * values).sum()) for values in (expected, got))
    whole = torch.cat([grad.flatten() for grad in theirs.values()]).norm()
    for name, grad in theirs.items():
        # The second term is for gradients that are zero but for rounding: those of queries that see one key, say.
        bound = 1e-9 * grad.norm() + 1e-14 * whole
        assert (ours[name] - grad).norm() < bound, name


@pytest.mark.parametrize("budget", [1, 40, 1 << 20])
def test_gradients_are_those_of_independent_rows(config, batch_rows, budget):
    check_equal(config(), batch_rows, budget)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_so_they_are_for_other_architectures(config, batch_rows, architecture):
    check_equal(config(architecture, tied=False), batch_rows)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1, 8), min_size=1, max_size=9), st.integers(0, 1000), st.integers(1, 60))
def test_so_they_are_for_any_tree(config, tree, rows_of, parents, seed, budget):
    shape = [None if parent < 0 or number == 0 else parent % number for number, parent in enumerate(parents)]
    check_equal(config(layers=1), rows_of(tree("e", seed, shape), seed), budget)


def test_a_partial_path_and_forced_tokens_are_scored_where_they_stand(config, turn, episode, rows_of):
    from agentrl.episode import Parent
    from agentrl.learning import Row, TrainedTurn

    turns = (
        turn("0", [1, 2, 3], [4, 5, 6, 7]),
        turn("1", [8], [9, 10], Parent("0", 5)),  # keeps the prompt and two of the four sampled tokens
        turn("2", [11], [12, 13, 14], Parent("0", 7), forced=1),
    )
    run = episode("e", turns)
    rows = [Row(run, turns[1], (TrainedTurn(turns[1], np.ones(2, np.float32)),))]
    rows.append(
        Row(run, turns[2], tuple(TrainedTurn(t, np.ones(len(t.sampled_ids), np.float32)) for t in (turns[0], turns[2])))
    )
    check_equal(config(), rows)
    assert len(plan(rows, 100).entries) == 2 + 4 + 2


def test_every_unique_token_is_computed_once(batch_rows):
    layout = plan(batch_rows, 1 << 20)
    prefixes = set()
    for row in batch_rows:
        path = row.episode.path(row.leaf).tolist()[:-1]  # nothing is read after the last trained token
        prefixes |= {tuple(path[: end + 1]) for end in range(len(path))}
    assert layout.tokens == len(prefixes)
    scored = {
        (tuple(row.episode.path(item.turn).tolist()[: end + 1]), item.turn.sampling.temperature or 1.0)
        for row in batch_rows
        for item in row.trained
        for end in range(row.episode.path_length(item.turn) - len(item.turn.sampled_ids), row.episode.path_length(item.turn))
    }
    assert len(layout.microbatches[0].targets) == len(scored)
    assert len(layout.entries) == sum(len(item.turn.sampled_ids) for row in batch_rows for item in row.trained)


def test_microbatches_keep_the_token_budget(batch_rows):
    layout = plan(batch_rows, 50)
    assert len(layout.microbatches) > 1
    assert max(len(microbatch.ids) for microbatch in layout.microbatches) <= 50


@pytest.mark.parametrize("elements", [1, 200, 1 << 24])
def test_logits_in_chunks_give_the_same_values_and_gradients(monkeypatch, elements):
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(kernels, "LEAST_ROWS", 1)
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for n in (9, 50))
    targets = torch.randint(0, 50, (9,), generator=generator)
    temperatures = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)
    expected = F.log_softmax(hidden @ matrix.T / temperatures[:, None], -1).gather(1, targets[:, None])[:, 0]
    got = kernels.TokenLogprobs.apply(hidden, matrix, targets, temperatures)
    torch.testing.assert_close(got, expected)
    factors = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for one, other in zip(*(torch.autograd.grad((factors * v).sum(), (hidden, matrix)) for v in (expected, got)), strict=True):
        torch.testing.assert_close(one, other)


def test_entropies_and_their_gradients_are_right(config, batch_rows):
    settings_ = config()
    tensors = doubles(settings_)
    layout = plan(batch_rows, 1 << 20)
    logprobs, entropies = score_with_entropy(settings_, tensors, layout.microbatches[0])
    expected = [torch.cat(column) for column in zip(*(alone(settings_, tensors, row) for row in batch_rows), strict=True)]
    for got, want in zip((logprobs, entropies), expected, strict=True):
        torch.testing.assert_close(got[torch.from_numpy(layout.scored)], want)


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_log_probs_are_those_of_transformers(config, batch_rows, tmp_path, architecture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

    shape = config(architecture, tied=architecture != "LlamaForCausalLM")
    save_weights(tmp_path, shape, init_weights(shape, 5, std=0.15))
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    learner = LocalLearner("p", tmp_path, Clipped())
    for row, found in zip(batch_rows, learner.logprobs(batch_rows), strict=True):
        path = torch.from_numpy(row.episode.path(row.leaf).astype(np.int64))
        with torch.no_grad():
            out = peer(path[None]).logits[0]
        for trained, values in zip(row.trained, found, strict=True):
            end = row.episode.path_length(trained.turn)
            start = end - len(trained.turn.sampled_ids)
            scores = F.log_softmax(out[start - 1 : end - 1] / (trained.turn.sampling.temperature or 1.0), -1)
            np.testing.assert_allclose(values, scores.gather(1, path[start:end, None])[:, 0].numpy(), atol=1e-5)
