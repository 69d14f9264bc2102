"""The coding agent as experiments: a supervised warm start on demonstrations, then reinforcement learning.

agentrl train code_tests --out runs/code
"""

from __future__ import annotations

from pathlib import Path

from agentrl import Experiment, Limits, Policy
from agentrl.credit import GRPO
from agentrl.credit.imitation import Imitation
from agentrl.engines import Demonstrations
from agentrl.learning.optimisers import Muon
from agentrl.learning.schedules import Linear
from agentrl.objectives import NLL, Clipped
from agentrl.rollout import Independent
from agentrl.tasks import Uniform
from agentrl_sandboxes.process import Process
from agentrl_workflows.code_tests.demonstrator import teacher
from agentrl_workflows.code_tests.pipelines import held_out_problems, train_problems
from agentrl_workflows.code_tests.problems import Problem
from agentrl_workflows.code_tests.rehearsal import Rehearsal
from agentrl_workflows.code_tests.workflow import Passed, all_pass, solve_small

SKILL, HASTE = 0.6, 0.85
"""Demonstrations of people in a hurry: 17 of 20 guess at once; of the others' turns 3 of 5 are chosen as the right thing."""
STAGES = (1, 2, 3)
WARM_STEPS = 240
STEPS = 60


def code_tests(model: str | Path = "code_tests", *, seed: int = 0, steps: int = STEPS) -> Experiment[Problem, Passed]:
    """Reinforcement learning from hidden tests alone."""
    return Experiment(
        solve_small,
        reward=all_pass,
        tasks=Uniform(train_problems(4096, stages=STAGES, seed=seed)),
        held_out=held_out_problems(200, stages=STAGES),
        rollout=Independent(8),
        credit=GRPO(),
        objective=Clipped(),
        policies=Policy(
            "coder", model=model, parser="tags", optimiser=Muon(lr=0.0025, adamw_lr=2.5e-4, schedule=Linear(steps))
        ),
        sandbox=Process(),
        steps=steps,
        tasks_per_step=8,
        seed=seed,
        eval_every=15,
        eval_tasks=100,
        checkpoint_every=15,
        limits=Limits(concurrency=64),
    )


def warm_up(
    model: str | Path, *, seed: int = 0, steps: int = WARM_STEPS, skill: float = SKILL, haste: float = HASTE
) -> Experiment[Problem, Passed]:
    """Supervised learning from demonstrations that end with a program that passes."""
    return Experiment(
        solve_small,
        reward=all_pass,
        tasks=Uniform(train_problems(64 * max(steps, 1), stages=STAGES, seed=seed + 1), shuffle=False),
        held_out=held_out_problems(200, stages=STAGES),
        rollout=Independent(1),
        credit=Imitation(least=1.0),
        objective=NLL(),
        engine=Demonstrations(teacher(skill, haste, seed=seed)),
        policies=Policy("coder", model=model, parser="tags", optimiser=Muon(lr=0.02, adamw_lr=2e-3, schedule=Linear(steps))),
        sandbox=Rehearsal(),
        steps=steps,
        tasks_per_step=64,
        min_group=1,
        seed=seed,
        eval_every=0,
        checkpoint_every=steps,
        limits=Limits(concurrency=256),
    )
