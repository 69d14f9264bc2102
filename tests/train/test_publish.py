"""When an engine gets new weights, and in what order it makes room for a learner on its device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentrl.engines.mock import Mock
from agentrl.episode import Version
from agentrl.errors import LearnerError, UserError
from agentrl.learning.lora import LoRA
from agentrl.publish import KEPT, Publisher


class Shared(Mock):
    """A mock on the learner's device, which says in which order it was asked for what."""

    def __init__(self, memory: bool = True) -> None:
        super().__init__(lambda rng: 0.0)
        self.told: list[str] = []
        self._info = replace(self._info, offers=replace(self._info.offers, memory=memory))

    async def pause(self, mode: Any = "in_place") -> None:
        self.told.append(f"pause {mode}")

    async def resume(self) -> None:
        self.told.append("resume")

    async def release_memory(self) -> None:
        self.told.append("release")

    async def resume_memory(self) -> None:
        self.told.append("take back")

    async def publish(self, policy: str, weights: Any, version: Version) -> None:
        self.told.append(f"publish {version.step}")


@dataclass(frozen=True)
class Spec:
    colocated: bool = True


def publisher(engine: Any, *, colocated: bool = True, max_staleness: int = 0, push_every: int = 1) -> Publisher:
    experiment: Any = SimpleNamespace(engine=Spec(colocated), max_staleness=max_staleness, push_every=push_every)
    learner: Any = SimpleNamespace(weights=dict, version=Version("run", "policy", 3))
    return Publisher(experiment, engine, {"policy": learner}, 3, Path("unused"))


async def test_a_colocated_engine_makes_room_for_the_step_and_goes_on_with_its_weights() -> None:
    engine = Shared()
    pushed = publisher(engine)
    await pushed.publish(3)
    async with pushed.room():
        engine.told.append("step")
    await pushed.publish(4)
    assert engine.told == ["publish 3", "pause retract", "release", "step", "take back", "publish 3", "resume"]


@pytest.mark.parametrize("memory", [True, False])
async def test_an_engine_elsewhere_goes_on_while_the_learner_steps(memory: bool) -> None:
    engine = Shared(memory)
    pushed = publisher(engine, colocated=False)
    async with pushed.room():
        pass
    await pushed.publish(4)
    assert engine.told == ["publish 3"]


def test_a_colocated_engine_that_cannot_free_its_memory_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot free its memory; start one server, with --enable-memory-saver"):
        publisher(Shared(memory=False))


async def test_room_is_taken_back_when_the_step_fails() -> None:
    engine = Shared()
    with pytest.raises(LearnerError):
        async with publisher(engine).room():
            raise LearnerError("nan")
    assert engine.told == ["pause retract", "release", "take back"]


class Adapting(Mock):
    """A mock of an engine that serves adapters; notes what was published."""

    def __init__(self) -> None:
        super().__init__(lambda rng: 0.0)
        self.folders: list[Path] = []
        self._info = replace(self._info, offers=replace(self._info.offers, adapters=True))

    async def publish(self, policy: str, weights: Any, version: Version) -> None:
        self.folders.append(weights["path"])


async def test_an_engine_of_adapters_gets_folders_of_which_the_last_few_stay(tmp_path: Path) -> None:
    engine, step = Adapting(), 0

    class Learner:
        @property
        def version(self) -> Version:
            return Version("run", "policy", step)

        def save(self, folder: Path) -> None:
            folder.mkdir(parents=True)

    named = {"policy": SimpleNamespace(lora=LoRA(4))}
    experiment: Any = SimpleNamespace(engine=Spec(False), max_staleness=0, push_every=1, by_name=named)
    learner: Any = Learner()
    pushed = Publisher(experiment, engine, {"policy": learner}, 0, tmp_path / "published")
    for step in range(KEPT + 3):
        await pushed.publish(step)
    assert [folder.name for folder in engine.folders] == [f"step-{n:06d}" for n in range(KEPT + 3)]
    assert [folder.is_dir() for folder in engine.folders] == [False] * 3 + [True] * KEPT
    named["policy"] = SimpleNamespace(lora=None)
    with pytest.raises(UserError, match=r"policy 'policy' learns all its weights, but its engine serves adapters"):
        await pushed.publish(step)


def due(batches: int, **changes: Any) -> list[int]:
    pushed = publisher(Shared(), **changes)
    found: list[int] = []
    for batch in range(4, 4 + batches):
        if pushed.is_due(batch):
            found.append(batch)
            pushed.served = batch
    return found


def test_weights_are_due_as_often_as_asked_but_before_all_that_is_sampled_would_be_refused() -> None:
    assert due(4, colocated=False) == [4, 5, 6, 7]
    assert due(9, colocated=False, max_staleness=8, push_every=3) == [6, 9, 12]
    assert due(9, colocated=False, max_staleness=1, push_every=100) == [5, 7, 9, 11]


def test_an_engine_that_made_room_has_no_weights_to_go_on_with() -> None:
    assert due(4, max_staleness=8, push_every=100) == [4, 5, 6, 7]
