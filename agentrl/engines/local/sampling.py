"""Drawing tokens, row by row: the j-th token of a request depends on its logits, its seed and j, and on nothing else.

Random numbers are counter-based (splitmix64 over (seed, j)); the draw inverts the cumulated probabilities, summed in
float64 in the order of the ids. Log-probs are those of softmax(logits / temperature) before top-k and top-p.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats: TypeAlias = npt.NDArray[np.float32]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_HEAD = 256
"""How many of the likeliest tokens are looked at before all of them are sorted."""


class Rules(NamedTuple):
    """How each of N rows is drawn. Greedy rows have temperature 1 here and `greedy` true."""

    temperature: Floats
    top_k: npt.NDArray[np.int64]
    top_p: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]


def uniform(seeds: npt.NDArray[np.uint64], counters: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The number in [0, 1) with 52 bits that belongs to each (seed, counter): splitmix64, Steele et al. 2014."""
    state = _mix(seeds + _GOLDEN) + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    return (_mix(state) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> _SHIFTS[0])) * _MIX_1
    state = (state ^ (state >> _SHIFTS[1])) * _MIX_2
    return state ^ (state >> _SHIFTS[2])


def row_numbers(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log-probs float32, probabilities float32, cumulated float64, entropy) of rows; what the self-test tries."""
    logprobs, probabilities = torch.log_softmax(logits, -1), torch.softmax(logits, -1)
    return logprobs, probabilities, probabilities.cumsum(-1, dtype=torch.float64), entropy(logprobs, probabilities)


def temper(logits: Tensor, temperature: Floats) -> Tensor:
    """logits / temperature; the padded rows behind the N temperatures stay as they are."""
    if (temperature == 1).all():
        return logits
    scale = np.ones(len(logits), np.float32)
    scale[: len(temperature)] = temperature
    return logits / torch.from_numpy(scale)[:, None]


def entropy(logprobs: Tensor, probabilities: Tensor) -> Tensor:
    """-sum p log p in nats, float64 inside; a token of probability 0 adds nothing."""
    return -(probabilities * logprobs.clamp_min(torch.finfo(torch.float32).min)).cumsum(-1, dtype=torch.float64)[:, -1]


def draw(
    logits: Tensor, rules: Rules, numbers: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], Floats, Tensor, Tensor]:
    """(ids [N], their log-probs [N], all log-probs [W, V], probabilities [W, V]) for the first N rows of logits [W, V]."""
    count = len(numbers)
    logits = temper(logits, rules.temperature)
    logprobs, probabilities = torch.log_softmax(logits, -1), torch.softmax(logits, -1)
    chosen = np.zeros(count, np.int64)
    if not rules.greedy.all():
        masked = probabilities
        filtered = np.flatnonzero(((rules.top_k > 0) | (rules.top_p < 1)) & ~rules.greedy)
        if len(filtered):
            which = torch.from_numpy(filtered)
            masked = probabilities.clone()
            masked[which] = _filter(probabilities[which], rules.top_k[filtered], rules.top_p[filtered])
        cumulated = masked.cumsum(-1, dtype=torch.float64)[:count]
        aims = cumulated[:, -1:] * torch.from_numpy(numbers)[:, None]
        # "right": the first id whose cumulated probability exceeds the aim, so one of probability 0 is never drawn
        chosen = torch.searchsorted(cumulated, aims, right=True)[:, 0].clamp_(max=logits.shape[1] - 1).numpy()
    if rules.greedy.any():
        chosen = np.where(rules.greedy, logits[:count].numpy().argmax(-1), chosen)
    taken = logprobs[:count].gather(1, torch.from_numpy(chosen)[:, None])[:, 0].numpy()
    return chosen, taken, logprobs, probabilities


def _filter(probabilities: Tensor, top_k: npt.NDArray[np.int64], top_p: npt.NDArray[np.float64]) -> Tensor:
    """Probabilities [N, V] with 0 outside top-k and top-p.

    As in SGLang, both look at the unfiltered distribution: a token stays when fewer than k are likelier and when the
    likelier ones sum to at most p. Equals of the last one that stays, stay.
    """
    vocab = probabilities.shape[1]
    most = torch.from_numpy(np.where(top_k > 0, top_k, vocab))
    limit = torch.from_numpy(top_p)[:, None]
    for head in (min(_HEAD, vocab), vocab):
        ranked = probabilities.topk(head).values
        before = ranked.cumsum(-1, dtype=torch.float64) - ranked
        kept = torch.where(limit < 1, before <= limit, True).sum(-1).minimum(most)
        if head == vocab or bool((kept < head).all()):
            break
    return torch.where(probabilities >= ranked.gather(1, kept[:, None] - 1), probabilities, 0.0)  # pyright: ignore
