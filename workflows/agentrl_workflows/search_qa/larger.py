"""search_qa for a model that has learned to chat: the same questions, tool, reward and learning, shown by a few examples.

agentrl train search_qa_larger --set policies.model=smollm2 --set policies.lora=16 --out runs/smollm2
python -m agentrl_workflows.search_qa.larger runs/smollm2    (the curve, and a table of before and after)
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agentrl import Agent, AgentRLError, Experiment, Team, workflow
from agentrl.credit import GiGPO
from agentrl.engines import Local
from agentrl.evaluate import EvalResult, evaluate
from agentrl.learning.optimisers import AdamW
from agentrl.metrics import before_after_table, draw_curve, read_metrics
from agentrl.rendering.contract import Message
from agentrl.run import Run
from agentrl_workflows.search_qa.experiment import search_qa
from agentrl_workflows.search_qa.questions import Question, held_out_questions, train_questions
from agentrl_workflows.search_qa.retrieval import search_of

SYSTEM = "Search for the name in the question, then copy the answer from the document."
EXAMPLES = (
    (
        "currency of Norway?",
        "<search>Norway</search>",
        "Norway\ncapital: Oslo\ncurrency: Krone\ncurrency code: NOK\ncontinent: Europe\ndomain: .no\nlargest neighbour: Sweden",
        "Krone",
    ),
    (
        "time zone of Osaka?",
        "<search>Osaka</search>",
        "Osaka\ncountry: Japan\ntime zone: Asia/Tokyo\nnearest city: Sakai",
        "Asia/Tokyo",
    ),
    (
        "largest neighbour of Chad?",
        "<search>Chad</search>",
        "Chad\ncapital: N'Djamena\ncurrency: Franc\ncurrency code: XAF\ncontinent: Africa\ndomain: .td\n"
        "largest neighbour: Libya",
        "Libya",
    ),
    (
        "country of Lyon?",
        "<search>Lyon</search>",
        "Lyon\ncountry: France\ntime zone: Europe/Paris\nnearest city: Villeurbanne",
        "France",
    ),
)
"""Question, call, document and answer: turns that nobody sampled, in front of every episode. Nothing in them is trained."""


def shown() -> list[Message]:
    """The examples as messages."""
    roles = ("user", "assistant", "tool", "assistant")
    return [Message(role, text) for example in EXAMPLES for role, text in zip(roles, example, strict=True)]


@workflow(Agent("searcher", system=SYSTEM, tools=[search_of(0)], max_turns=4, max_tokens=24))
async def answer_as_shown(task: Question, team: Team) -> str:
    """`search_qa`'s workflow behind the examples."""
    messages = [*shown(), Message("user", task.text)]
    return (await team["searcher"].run(messages, tools=[search_of(task.world)])).text


def search_qa_larger(
    model: str | Path = "smollm2", *, seed: int = 0, steps: int = 400, hops: tuple[int, ...] = (1,)
) -> Experiment[Question, str]:
    """`search_qa` on questions of one hop, in steps that two cores make in less than a minute."""
    experiment = search_qa(model, seed=seed, steps=steps)
    policy = replace(experiment.by_name["searcher"], optimiser=AdamW(lr=2e-4))
    return replace(
        experiment,
        workflow=answer_as_shown,
        policies=policy,
        tasks=train_questions(4096, hops=hops, seed=seed),
        held_out=held_out_questions(100, hops=hops),
        credit=GiGPO(),
        engine=Local(threads=2, prefix_cache_tokens=16_384),
        threads=2,
        microbatch_tokens=1024,
        eval_every=10,
        checkpoint_every=5,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draws a run's curve, and compares it with the model it began from on more held-out questions."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m agentrl_workflows.search_qa.larger RUN", file=sys.stderr)
        return 2
    try:
        report(Path(arguments[0]))
    except AgentRLError as error:
        print(f"larger: {error}", file=sys.stderr)
        return 1
    return 0


def report(run: Path, *, questions: int = 400) -> None:
    """`curve.png` in the run, and the table on standard output."""
    points = [(step.step, step.values) for step in read_metrics(run / "metrics.jsonl")]
    sampled = [(step, values["reward/mean"]) for step, values in points if "reward/mean" in values]
    last_ten = [sampled[max(0, at - 9) : at + 1] for at in range(len(sampled))]
    series = {
        "held-out success (greedy, 100 questions)": [
            (step, values["held_out/success"]) for step, values in points if "held_out/success" in values
        ],
        "sampled reward (mean of ten steps)": [(part[-1][0], sum(value for _, value in part) / len(part)) for part in last_ten],
    }
    draw_curve(series, run / "curve.png", x="learner step", y="success", title="search_qa, shown by examples")
    experiment = search_qa_larger(Run.find(run).described["experiment"]["policies"]["model"])
    experiment = replace(experiment, held_out=held_out_questions(questions, hops=(1,), seed=1))
    before, after = (asyncio.run(evaluate(experiment, policies=policies)) for policies in (None, run))
    print(before_after_table(by_field(before), by_field(after)))


def by_field(result: EvalResult) -> dict[str, float]:
    """Success in all and by the field that is asked for."""
    rewards: dict[str, list[float]] = {}
    for group in result.groups:
        for episode in group.finished:
            rewards.setdefault(group.task.text.partition(" of ")[0], []).append(episode.reward)
    means = {f"{field} ({len(found)} questions)": sum(found) / len(found) for field, found in sorted(rewards.items())}
    return {"success": result.success, **means, "turns an episode": result.turns, "searches an episode": result.tool_calls}


if __name__ == "__main__":
    sys.exit(main())
