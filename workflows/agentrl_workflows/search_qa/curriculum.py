"""Which questions are learned from in which order: easier ones first, in the warm start and in reinforcement learning."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from agentrl.effect import derive_seed
from agentrl.episode import Group
from agentrl.errors import UserError
from agentrl_workflows.search_qa.questions import Question, train_questions

HOPS = (1, 2, 3, 4)
DEMONSTRATIONS = 6144
"""Demonstrations of questions of two to four hops are a fixed set, as they are wherever somebody has to write them."""
DRILLS = 0.3
"""The share of the warm start that is field drills alone: lookups of one hop, three quarters of them in permuted worlds."""
MOST_DRILLS = 96
"""More steps than these teach nothing new: the loss is at its floor."""
LATER_DRILLS = 0.25
"""The share of drills in the batches after that."""

OPENS = 0.5
"""Success of late of all fewer hops at which questions of more hops are asked."""
LEAST, RATE = 0.1, 0.1


def warm_up_questions(steps: int, batch: int, *, seed: int = 0) -> list[Question]:
    """The questions of a warm start in order: batches of drills, then batches of drills and demonstrations."""
    first = min(round(DRILLS * steps), MOST_DRILLS)
    later = round(LATER_DRILLS * batch)
    lookups = iter(train_questions(first * batch + (steps - first) * later, hops=(1,), seed=seed + 1000))
    longer = _epochs(train_questions(DEMONSTRATIONS, hops=HOPS[1:], seed=seed + 1), (steps - first) * (batch - later), seed)
    found = list(islice(lookups, first * batch))
    for at in range(0, len(longer), batch - later):
        found += [*islice(lookups, later), *longer[at : at + batch - later]]
    return found


def _epochs(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` questions, each once before one comes again, in an order of its own every time."""
    found: list[Question] = []
    for epoch in range(-(-count // len(questions))):
        rng = random.Random(derive_seed("search_qa epoch", seed, epoch))
        found += sorted(questions, key=lambda _, rng=rng: rng.random())
    return found[:count]


class Rising:
    """A task source that asks questions of n + 1 hops once those of fewer hops succeed often enough.

    Of the open ones it asks most where outcomes differ most: the share of n hops goes with p (1 - p), p their success of late,
    and is never 0. A group moves its hops' p by `RATE` of the way to its mean reward.
    """

    def __init__(self, questions: Mapping[int, Sequence[Question]], *, seed: int = 0) -> None:
        if not questions or not all(questions.values()):
            raise UserError("Rising needs questions of every number of hops that it is to ask")
        self._questions = dict(sorted(questions.items()))
        self._seed = seed
        self._taken = dict.fromkeys(self._questions, 0)
        self._success = dict.fromkeys(self._questions, 0.5)

    def shares(self) -> dict[int, float]:
        """The share of each number of hops in what `take` gives next; they sum to 1."""
        weights: dict[int, float] = {}
        for hops, success in self._success.items():
            below = [self._success[easier] for easier in weights]
            weights[hops] = max(LEAST, 4 * success * (1 - success)) if min(below, default=1.0) >= OPENS else 0.0
        return {hops: weight / sum(weights.values()) for hops, weight in weights.items()}

    def take(self, count: int) -> list[Question]:
        """See `TaskSource`."""
        rng = random.Random(derive_seed("search_qa rising", self._seed, sum(self._taken.values())))
        shares, found = self.shares(), []
        for at in range(count):
            # one draw from each of `count` equal parts: the shares of a batch are right to within one question
            place, chosen = (at + rng.random()) / count, 0
            for hops, share in shares.items():
                if share:
                    chosen = hops
                if place < share:
                    break
                place -= share
            pool = self._questions[chosen]
            found.append(pool[self._taken[chosen] % len(pool)])
            self._taken[chosen] += 1
        return found

    def update(self, groups: Sequence[Group]) -> None:
        """See `TaskSource`."""
        for group in groups:
            if group.finished:
                mean = sum(episode.reward for episode in group.finished) / len(group.finished)
                self._success[group.task.hops] += RATE * (mean - self._success[group.task.hops])

    def state(self) -> Any:
        """See `TaskSource`."""
        return {"taken": list(self._taken.values()), "success": list(self._success.values())}

    def load(self, state: Any) -> None:
        """See `TaskSource`."""
        self._taken = dict(zip(self._questions, map(int, state["taken"]), strict=True))
        self._success = dict(zip(self._questions, map(float, state["success"]), strict=True))


def rising(hops: Sequence[int] = HOPS, *, count: int = 2048, seed: int = 0) -> Rising:
    """`Rising` over `count` training questions of each number of hops."""
    return Rising({number: train_questions(count, hops=(number,), seed=seed) for number in hops}, seed=seed)
