"""Trees that branch inside turns, and the same trees with a turn for each stretch between two branches."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrl.episode import Episode, Parent, token_ids
from tests.credit.conftest import make_chain, make_turn


@dataclass(frozen=True)
class Fork:
    """One leaf: what it goes on from (None = nothing), how many of its parent's tokens it keeps, how many it draws."""

    of: int | None
    kept: int
    own: int
    reward: float
    status: str = "done"


def by_turn(forks: Sequence[Fork]) -> list[Episode]:
    """Each leaf is one turn, which begins with the kept tokens of its parent's; their own log-probs there are nan."""
    leaves: list[Episode] = []
    for number, (fork, tokens) in enumerate(zip(forks, drawn(forks), strict=True)):
        logprobs = np.array([logprob(token) for token in tokens], np.float32)
        logprobs[: fork.kept] = np.nan
        turn = make_turn(
            "0", seed=number + 1, sampled=len(tokens), forced=fork.kept, sampled_ids=ids(tokens), logprobs=logprobs
        )
        leaves.append(_leaf(forks, number, (turn,)))
    return leaves


def by_stretch(forks: Sequence[Fork]) -> list[Episode]:
    """Each leaf has a turn for each stretch between the places where finished leaves branch; shared ones are copies."""
    paths = drawn(forks)
    heads = {paths[n][: fork.kept] for n, fork in enumerate(forks) if fork.status == "done" and fork.kept}
    heads |= {paths[n][:kept] for n, fork in enumerate(forks) if fork.status == "done" for kept in _cuts(forks, n)}
    leaves: list[Episode] = []
    for number, tokens in enumerate(paths):
        ends = [*(end for end in range(1, len(tokens)) if tokens[:end] in heads), len(tokens)]
        turns: list[Any] = []
        for index, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            part = tokens[start:end]
            turns.append(
                make_turn(
                    str(index), index, seed=zlib.crc32(repr(tokens[:end]).encode()), sampled=len(part), sampled_ids=ids(part),
                    context_ids=token_ids([]), logprobs=np.array([logprob(token) for token in part], np.float32),
                    parent=Parent(str(index - 1), 3 + start) if index else None,
                )
            )  # fmt: skip
        turns[0] = replace(turns[0], context_ids=token_ids([1, 2, 3]))
        leaves.append(_leaf(forks, number, tuple(turns)))
    return leaves


def drawn(forks: Sequence[Fork]) -> list[tuple[tuple[int, int], ...]]:
    """For each leaf its tokens as (leaf that drew it, place)."""
    paths: list[tuple[tuple[int, int], ...]] = []
    for number, fork in enumerate(forks):
        head = paths[fork.of][: fork.kept] if fork.of is not None else ()
        paths.append((*head, *((number, len(head) + n) for n in range(fork.own))))
    return paths


def ids(tokens: Sequence[tuple[int, int]]) -> Any:
    return token_ids([10 * leaf + place for leaf, place in tokens])


def logprob(token: tuple[int, int]) -> float:
    return -0.2 - token[0] - token[1] / 16


def _cuts(forks: Sequence[Fork], number: int) -> list[int]:
    """Where the leaf and those that it comes from began."""
    fork = forks[number]
    above = [] if fork.of is None else [kept for kept in _cuts(forks, fork.of) if kept < fork.kept]
    return [*above, fork.kept] if fork.kept else above


def _leaf(forks: Sequence[Fork], number: int, turns: Any) -> Episode:
    fork = forks[number]
    of = None if fork.of is None else f"e{fork.of}"
    return replace(make_chain(f"e{number}", "g", [], outcome=fork.reward, status=fork.status), turns=turns, fork_of=of)
