"""What a learner step may take: never too old, the same after a crash, in task order where nothing may be old."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.admission import Admission, oldest_steps, staleness
from agentrl.episode import Episode, Group, Sampling, Turn, Version, VersionSpan
from agentrl.errors import UserError
from agentrl.learning.contract import Row, TrainedTurn
from agentrl.tasks import Uniform


def version(step: int, policy: str = "p", lineage: str = "run") -> Version:
    return Version(lineage, policy, step, f"d{step}")


def a_turn(*spans: VersionSpan, policy: str = "p", forced: int = 0) -> Turn:
    length = max((span.end for span in spans), default=1)
    return Turn(
        id="t", agent="a", index=0, policy=policy, versions=spans, parent=None, predecessor=None, branch="",
        context_ids=np.zeros(1, np.int32), sampled_ids=np.zeros(length, np.int32), logprobs=np.zeros(length, np.float32),
        logprobs_at="before_mask", finish="stop", sampling=Sampling(), seed=0, text="", forced=forced,
    )  # fmt: skip


def a_group(name: str, *steps: int, status: Any = "done") -> Group:
    """A group of one episode with a turn for each step."""
    turns = tuple(a_turn(VersionSpan(version(step), 0, 3)) for step in steps)
    return Group(name, None, (Episode("e", name, None, 0, "", "policy", status, turns),), 1)


def opened(size: int, max_staleness: int, steps: int = 100, **more: Any) -> Admission[int]:
    return Admission(Uniform(range(1000), shuffle=False), size, max_staleness=max_staleness, steps=steps, **more)


def test_echos_rule_on_its_own_example() -> None:
    """Echo's async push-pull, arXiv 2508.05387: what each train step admits of rollouts tagged with their weights' version."""
    events = [
        ("weights", 0), ("roll", 0), ("roll", 0), ("train", 1), ("roll", 0), ("train", 2), ("roll", 0), ("weights", 2),
        ("roll", 2),
    ]  # fmt: skip
    admission, learner, admitted = opened(2, 1), version(0), list[list[int]]()
    for event, step in events:
        if event == "roll":
            admission.put(admission.begin()[0], a_group("g", step), {"p": learner})
        elif event == "train":
            learner = version(step)
            admission.refuse({"p": learner})
            groups = admission.take() if admission.ready else []
            admitted.append([oldest_steps(group, {"p": learner})["p"] for group in groups])
    assert admitted == [[0, 0], []]
    assert (admission.refused, admission.in_flight) == (2, 0), "those of weights 0 that came at step 2"


def test_the_oldest_token_of_any_finished_member_decides() -> None:
    now = {"p": version(5)}
    assert oldest_steps(a_group("g", 4, 2, 3), now) == {"p": 2}
    assert oldest_steps(a_group("g", 2, status="failed"), now) == {}
    straddles = a_turn(VersionSpan(version(3), 0, 2), VersionSpan(version(4), 2, 5))
    foreign = a_turn(VersionSpan(version(0, lineage="other"), 0, 2))
    frozen = a_turn(VersionSpan(version(0, "judge"), 0, 2), policy="judge")
    episode = Episode("e", "g", None, 0, "", "policy", "done", (straddles, foreign, frozen))
    assert oldest_steps(Group("g", None, (episode,), 1), now) == {"p": 3}


def test_with_several_policies_each_has_its_own_steps() -> None:
    admission = opened(1, 1)
    turns = (a_turn(VersionSpan(version(7, "a"), 0, 2), policy="a"), a_turn(VersionSpan(version(2, "b"), 0, 2), policy="b"))
    group = Group("g", None, (Episode("e", "g", None, 0, "", "policy", "done", turns),), 1)
    admission.put(admission.begin()[0], group, {"a": version(8, "a"), "b": version(3, "b")})
    assert admission.ready
    admission.refuse({"a": version(8, "a"), "b": version(4, "b")})
    assert not admission.ready and admission.refused == 1


def test_staleness_counts_trained_tokens() -> None:
    turn = a_turn(VersionSpan(version(3), 0, 4), VersionSpan(version(5), 4, 10), forced=2)
    episode = Episode("e", "g", None, 0, "", "policy", "done", (turn,))
    row = Row(episode, turn, (TrainedTurn(turn, np.zeros(10, np.float32)),))
    assert staleness([row], version(5)) == {"staleness/mean": 2 * 2 / 8, "staleness/max": 2.0}
    assert staleness([], version(5)) == {"staleness/mean": 0.0, "staleness/max": 0.0}


def test_a_source_that_gives_too_few_tasks_is_named() -> None:
    class Short(Uniform[int]):
        def take(self, count: int) -> list[int]:
            return super().take(count - 1)

    with pytest.raises(UserError, match=r"source Short gave 2 tasks, wanted 3; take\(count\) gives count"):
        Admission(Short(range(5)), 3, steps=1).begin()


class World:
    """Training without models: groups end in any order, the learner steps when it has a batch, or the process is killed."""

    def __init__(self, size: int, max_staleness: int, steps: int, push_every: int) -> None:
        self.size, self.max_staleness, self.steps, self.push_every = size, max_staleness, steps, push_every
        self.source: Uniform[int] = Uniform(range(7), seed=3)
        self.admission = self.opened(0)
        self.batch = self.served = 0
        self.flying: dict[int, list[int]] = {}
        self.stored: dict[int, Group] = {}
        self.tasks: dict[int, int] = {}
        self.state: Any = None
        self.batches: list[list[int]] = []

    def opened(self, batch: int) -> Admission[int]:
        return Admission(self.source, self.size, max_staleness=self.max_staleness, steps=self.steps, batch=batch)

    @property
    def now(self) -> dict[str, Version]:
        return {"p": version(self.batch)}

    def begin(self) -> None:
        while self.admission.may_begin(self.served):
            number, task = self.admission.begin()
            assert self.tasks.setdefault(number, task) == task, "a number stands for another task after a crash"
            assert number not in self.flying
            self.flying[number] = [self.served]

    def turn(self, number: int) -> None:
        """One more model call of a group, with the weights of now."""
        self.flying[number].append(self.served)

    def end(self, number: int) -> None:
        steps = self.flying.pop(number)
        group = self.stored.setdefault(number, a_group(str(number), *steps))
        self.admission.put(number, group, self.now)

    def learn(self) -> None:
        groups = self.admission.take()
        numbers = [int(group.id) for group in groups]
        for group in groups:
            assert self.batch - min(oldest_steps(group, self.now).values()) <= self.max_staleness
        self.batches.append(numbers)
        self.state = json.loads(json.dumps(self.admission.state()))
        self.batch += 1
        if self.batch - self.served > self.max_staleness or self.batch % self.push_every == 0:
            self.served = self.batch
        self.admission.refuse(self.now)

    def killed(self) -> None:
        """All that was in memory is gone; what ended is in the store."""
        self.source = Uniform(range(7), seed=3)
        self.admission = self.opened(self.batch)
        if self.state is not None:
            self.admission.load(self.state)
        self.served = self.batch
        self.flying = {}


WORLDS = st.builds(
    World, st.integers(1, 4), st.integers(0, 5), st.just(12), st.integers(1, 4)
)  # batches of 1 to 4 groups, a bound of 0 to 5, weights pushed every 1 to 4 steps


@settings(max_examples=150, deadline=None)
@given(WORLDS, st.data())
def test_whatever_ends_when_every_batch_is_fresh_and_the_run_comes_to_its_end(world: World, data: st.DataObject) -> None:
    for _ in range(2000):
        if world.batch == world.steps:
            break
        world.begin()
        open_groups = world.admission.in_flight
        assert open_groups <= (world.max_staleness + 1) * world.size
        assert open_groups or world.admission.ready, "nothing is under way and nothing is ready"
        choices = ["end", "turn"] * bool(world.flying) + ["learn"] * 2 * world.admission.ready + ["kill"] * (world.batch > 0)
        match data.draw(st.sampled_from(choices)):
            case "end":
                number = data.draw(st.sampled_from(sorted(world.flying)))
                world.end(number)
            case "turn":
                world.turn(data.draw(st.sampled_from(sorted(world.flying))))
            case "learn":
                world.learn()
            case _:
                if data.draw(st.integers(0, 4)) == 0:
                    world.killed()
    else:
        raise AssertionError("the run did not come to its end")
    trained = [number for batch in world.batches for number in batch]
    assert len(trained) == len(set(trained)) == world.steps * world.size
    assert all(batch == sorted(batch) for batch in world.batches)
    if world.max_staleness == 0:
        assert trained == list(range(world.steps * world.size))
        assert world.admission.refused == 0
    world.begin()
    assert world.admission.in_flight == 0, "something is sampled that no batch will take"


def test_after_a_crash_what_was_not_trained_is_begun_again_and_nothing_else() -> None:
    world = World(2, 2, 12, 1)
    world.begin()
    for number in (3, 0, 5):
        world.end(number)
    world.learn()
    assert world.batches == [[0, 3]]
    world.begin()
    begun = set(world.flying) | {5}
    world.killed()
    world.begin()
    assert set(world.flying) == begun == {1, 2, 4, 5, 6, 7}


@pytest.mark.parametrize("served", [3, 4, 5])
def test_no_more_is_begun_than_could_be_admitted(served: int) -> None:
    admission = opened(2, 2, batch=5)
    begun = 0
    while admission.may_begin(served):
        admission.begin()
        begun += 1
    assert begun == 2 * (served + 1 + 2 - 5)


def test_turns_that_a_fork_inherits_are_as_old_as_they_are() -> None:
    turns = (a_turn(VersionSpan(version(1), 0, 2)), a_turn(VersionSpan(version(4), 0, 2)))
    forked = Episode("f", "g", None, 0, "", "policy", "done", turns, fork_of="e", fork_cut=1)
    assert oldest_steps(Group("g", None, (forked,), 1), {"p": version(4)}) == {"p": 1}
