"""A run that takes seconds: a model of one narrow layer, real search, real learning."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrl import Experiment, train
from agentrl.learning.optimisers import AdamW
from agentrl.rollout import Independent
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import held_out_questions, train_questions


def tiny_model(folder: Path) -> Path:
    return make_model(folder, hidden=64, layers=2, heads=2, ff=128)


def warmed(folder: Path, steps: int = 50) -> Path:
    """A model that has seen a few demonstrations: it searches and answers, mostly wrongly."""
    experiment = replace(
        warm_up(tiny_model(folder / "model"), steps=steps),
        tasks=train_questions(1600, hops=(1, 2), worlds=(1, 2)),
        tasks_per_step=32,
        held_out=(),
    )
    result = asyncio.run(train(experiment, out=folder / "warm"))
    return result.policies["searcher"]


def small(model: Path, *, steps: int = 6, **changes: Any) -> Experiment[Any, Any]:
    """Reinforcement learning on a handful of questions; rewards are graded, so that most groups have something to learn."""
    experiment = search_qa(model, steps=steps)
    policy = replace(experiment.by_name["searcher"], optimiser=AdamW(lr=3e-3))
    settings: dict[str, Any] = {
        "tasks": train_questions(32, hops=(1, 2), worlds=(1, 2), seed=3),
        "held_out": held_out_questions(4, hops=(1,)),
        "reward": graded,
        "rollout": Independent(4),
        "tasks_per_step": 2,
        "policies": policy,
        "eval_every": 3,
        "checkpoint_every": 2,
    }
    return replace(experiment, **(settings | changes))


def graded(task: Any, output: str, episode: Any) -> float:
    """Something that even a poor model varies in: which tokens it drew."""
    return float(sum(int(turn.sampled_ids.sum()) for turn in episode.turns) % 7) / 7


def few() -> Any:
    """Three questions, so that a run of some batches meets each again."""
    return train_questions(32, hops=(1, 2), worlds=(1, 2), seed=3)[:3]
