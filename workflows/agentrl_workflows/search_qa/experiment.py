"""The search agent as experiments: a supervised warm start on demonstrations, then reinforcement learning.

agentrl train agentrl_workflows.search_qa.experiment:search_qa --set policies.model=FOLDER --out runs/mine

Methods that look at the likelihood of the right answer find its probe by name:
--credit igpo --set probes=agentrl_workflows.search_qa.experiment:ANSWER
"""

from __future__ import annotations

from pathlib import Path

from agentrl import Agent, Episode, Experiment, Limits, Policy, Team, workflow
from agentrl.credit import GiGPO
from agentrl.credit.imitation import Imitation
from agentrl.engines import Demonstrations
from agentrl.learning.optimisers import Muon
from agentrl.learning.schedules import Linear
from agentrl.objectives import NLL, Clipped
from agentrl.probes import AnswerProbe
from agentrl.rollout import Independent
from agentrl.tasks import Uniform
from agentrl_workflows.search_qa.curriculum import HOPS, rising, warm_up_questions
from agentrl_workflows.search_qa.demonstrator import teacher
from agentrl_workflows.search_qa.questions import Question, exact_match, held_out_questions
from agentrl_workflows.search_qa.retrieval import search_of

SKILL = 0.4
"""The share of a demonstration's actions that are chosen as the right one."""


@workflow(Agent("searcher", tools=[search_of(0)], max_turns=6, max_tokens=12))
async def answer(task: Question, team: Team) -> str:
    """Searches the documents of the question's world, then answers."""
    return (await team["searcher"].run(task.text, tools=[search_of(task.world)])).text


def right(task: Question, output: str, episode: Episode) -> float:
    """1 for the answer that the documents hold, else 0."""
    return exact_match(output, task.answer)


def answer_of(task: Question) -> str:
    """What `AnswerProbe` asks for."""
    return task.answer


ANSWER = AnswerProbe(answer_of, lead="")
"""The likelihood of the right answer before each turn: an answer is a turn of its own, so nothing leads it in."""


def search_qa(model: str | Path = "models/warm", *, seed: int = 0, steps: int = 300) -> Experiment[Question, str]:
    """Reinforcement learning from outcomes alone; the questions get harder."""
    return Experiment(
        answer,
        reward=right,
        tasks=rising(seed=seed),
        held_out=held_out_questions(200, hops=HOPS),
        rollout=Independent(8),
        credit=GiGPO(std="sample"),
        objective=Clipped(),
        policies=Policy(
            "searcher", model=model, parser="tags", optimiser=Muon(lr=0.0025, adamw_lr=2.5e-4, schedule=Linear(steps))
        ),
        steps=steps,
        tasks_per_step=8,
        seed=seed,
        eval_every=50,
        checkpoint_every=50,
        limits=Limits(concurrency=256),
    )


def warm_up(model: str | Path, *, seed: int = 0, steps: int = 320, skill: float = SKILL) -> Experiment[Question, str]:
    """Supervised learning: lookups first, then demonstrations as well, those that end with the right answer."""
    return Experiment(
        answer,
        reward=right,
        tasks=Uniform(warm_up_questions(steps, 64, seed=seed), shuffle=False),
        held_out=held_out_questions(200, hops=HOPS),
        rollout=Independent(1),
        credit=Imitation(least=1.0),
        objective=NLL(),
        engine=Demonstrations(teacher(skill, seed=seed)),
        policies=Policy("searcher", model=model, parser="tags", optimiser=Muon(lr=0.02, adamw_lr=2e-3, schedule=Linear(steps))),
        steps=steps,
        tasks_per_step=64,
        min_group=1,
        seed=seed,
        eval_every=0,
        checkpoint_every=steps,
        limits=Limits(concurrency=256),
    )
