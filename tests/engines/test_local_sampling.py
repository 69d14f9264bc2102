"""How tokens are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentrl.engines.local.sampling import Rules, draw, entropy, uniform


def rules(count: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, greedy: bool = False) -> Rules:
    return Rules(np.full(count, temperature, np.float32), np.full(count, top_k), np.full(count, top_p), np.full(count, greedy))


def numbers(count: int) -> np.ndarray:
    return uniform(np.full(count, 7, np.uint64), np.arange(count))


def splitmix(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


@pytest.mark.parametrize(("seed", "counter"), [(0, 0), (3, 5), (2**64 - 1, 9), (2**40, 8191)])
def test_random_numbers_are_those_of_splitmix64(seed: int, counter: int) -> None:
    golden = 0x9E3779B97F4A7C15
    want = (splitmix((splitmix((seed + golden) % 2**64) + (counter + 1) * golden) % 2**64) >> 12) / 2**52
    among_others = uniform(np.array([7, seed], np.uint64), np.array([1, counter]))
    assert float(among_others[1]) == want


def test_random_numbers_of_neighbouring_seeds_and_counters_look_uniform() -> None:
    by_counter = numbers(20000)
    by_seed = uniform(np.arange(20000, dtype=np.uint64), np.zeros(20000))
    for drawn in (by_counter, by_seed):
        counts = np.histogram(drawn, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 100  # chi-squared, 49 degrees: p < 1e-5
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0]).expand(20000, -1)
    drawn = draw(logits, rules(20000, temperature=0.7), numbers(20000))[0]
    want = torch.softmax(logits[0] / 0.7, -1).numpy() * 20000
    got = np.bincount(drawn, minlength=5)
    assert ((got[:4] - want[:4]) ** 2 / want[:4]).sum() < 25
    assert got[4] == 0


def test_top_k_draws_from_the_k_likeliest_in_proportion() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0]).expand(8000, -1)
    got = np.bincount(draw(logits, rules(8000, top_k=2), numbers(8000))[0], minlength=4)
    assert got[0] == got[3] == 0
    assert abs(got[1] / 8000 - 1 / (1 + np.exp(-1))) < 0.02


def test_top_p_keeps_the_token_that_crosses_the_limit() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(4000, -1)
    assert set(draw(logits, rules(4000, top_p=0.5), numbers(4000))[0].tolist()) == {0, 1}
    assert set(draw(logits, rules(4000, top_p=1e-9), numbers(4000))[0].tolist()) == {0}


def test_filters_agree_with_a_full_sort_when_the_head_is_too_short() -> None:
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0)) * 0.01  # nearly flat: top-p keeps 1,800
    wide = draw(logits, rules(3, top_p=0.9), np.full(3, 0.9999))[0]
    probabilities = torch.softmax(logits, -1)
    ranked, order = probabilities.sort(descending=True)
    kept = (ranked.double().cumsum(-1) - ranked <= 0.9).sum(-1)
    for row in range(3):
        allowed = order[row, : kept[row]].sort().values
        assert int(wide[row]) == int(
            allowed[
                int(
                    (
                        probabilities[row, allowed].double().cumsum(0) / probabilities[row, allowed].double().sum() <= 0.9999
                    ).sum()
                )
            ]
        )


def test_a_row_is_drawn_alike_whatever_its_mates_ask_for() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(1)) * 3
    drawn = numbers(8)
    mixed = Rules(
        np.array([1, 0.5, 1, 1, 2, 1, 1, 1], np.float32),
        np.array([0, 4, 0, 9, 0, 1, 0, 3]),
        np.array([1, 1, 0.3, 0.9, 1, 1, 1, 1]),
        np.array([False, False, False, False, False, True, True, False]),
    )
    together = draw(logits, mixed, drawn)
    for row in range(8):
        one = Rules(*(field[row : row + 1] for field in mixed))
        alone = draw(logits[row : row + 1], one, drawn[row : row + 1])
        assert (alone[0][0], alone[1][0].tobytes()) == (together[0][row], together[1][row].tobytes())


def test_entropy_of_a_certain_token_is_zero() -> None:
    logits = torch.tensor([[0.0, -200.0, -200.0]])
    assert float(entropy(logits.log_softmax(-1), logits.softmax(-1))[0]) == 0.0
