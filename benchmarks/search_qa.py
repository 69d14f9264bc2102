"""Does reinforcement learning earn its CPU? The demo's two phases on several seeds, beside the same CPU of supervision alone.

    python benchmarks/search_qa.py --out runs/study --seeds 0 1 2

Goes on where it was stopped, at any point. Prints success on 400 held-out questions of one to four hops that no setting was
chosen on, by seed and by hops, with two 95 % intervals of what RL gains over the control, and draws the curves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from learning_study import FRESH, AnyExperiment, Study, main

from agentrl_workflows.search_qa.curriculum import HOPS
from agentrl_workflows.search_qa.demo import Size
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import held_out_questions

SIZE = Size()


def learn(weights: Path, seed: int, steps: int) -> AnyExperiment:
    return replace(search_qa(weights, seed=seed, steps=steps), eval_tasks=SIZE.eval_tasks)


STUDY = Study(
    "search_qa",
    model=lambda folder, seed: make_model(folder, seed=seed),
    warm_up=lambda model, seed, steps: warm_up(model, seed=seed, steps=steps),
    learn=learn,
    steps=(SIZE.warm_steps, SIZE.steps),
    fresh=lambda count: held_out_questions(count, hops=HOPS, seed=FRESH),
    count=400,
    kind=lambda task: f"{task.hops} hop" + "s" * (task.hops > 1),
    points=6,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
