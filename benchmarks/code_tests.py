"""Does reinforcement learning earn its CPU where code runs in sandboxes? Beside it, the same CPU of supervision alone.

    python benchmarks/code_tests.py --out runs/code_study --seeds 0 1 2

Goes on where it was stopped. CPU-seconds are those of the process and of its sandboxes (those of a session that was killed are
not known, and not counted). Prints success on 200 held-out problems that no setting was chosen on, by seed and by number of
stages, and draws the curves.
"""

from __future__ import annotations

from learning_study import FRESH, Study, main

from agentrl_workflows.code_tests.experiment import STAGES, STEPS, WARM_STEPS, code_tests, warm_up
from agentrl_workflows.code_tests.model import make_model
from agentrl_workflows.code_tests.pipelines import held_out_problems

STUDY = Study(
    "code_tests",
    model=lambda folder, seed: make_model(folder, seed=seed),
    warm_up=lambda model, seed, steps: warm_up(model, seed=seed, steps=steps),
    learn=lambda weights, seed, steps: code_tests(weights, seed=seed, steps=steps),
    steps=(WARM_STEPS, STEPS),
    fresh=lambda count: held_out_problems(count, stages=STAGES, seed=FRESH),
    count=200,
    kind=lambda task: task.kind,
    points=4,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
