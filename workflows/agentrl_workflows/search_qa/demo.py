"""`make demo`: a multi-turn search agent learns on two CPU cores, from nothing.

A model of a million random weights learns to look things up and sees demonstrations that are often wrong (supervised warm
start), then learns questions of one to four hops from outcomes alone by reinforcement. Ends with a table of before and after,
a curve and one episode, before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentrl import AgentRLError, Experiment, train
from agentrl.evaluate import EvalResult, evaluate
from agentrl.metrics import before_after_table, draw_curve, read_metrics
from agentrl.train import TrainResult
from agentrl.view import render_tree
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import Question


@dataclass(frozen=True, slots=True)
class Size:
    """How much the demo does."""

    warm_steps: int = 320
    steps: int = 300
    eval_tasks: int | None = None


SMOKE = Size(warm_steps=6, steps=3, eval_tasks=16)


def main(argv: Sequence[str] | None = None) -> int:
    """The demo from the shell."""
    parser = argparse.ArgumentParser(prog="python -m agentrl_workflows.search_qa.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="begin anew where a demo has run")
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that everything runs")
    options = parser.parse_args(argv)
    try:
        demo(options.out, seed=options.seed, fresh=options.fresh, size=SMOKE if options.smoke else Size())
    except AgentRLError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from here (--out {options.out})", file=sys.stderr)
        return 130
    return 0


def demo(out: Path, *, seed: int, fresh: bool, size: Size) -> None:
    """Warm start, reinforcement learning, and what came of it; goes on where it was stopped."""
    cpu = time.process_time()
    model = out / "model"
    if not (model / "config.json").exists():
        make_model(model, seed=seed)
    print("1/2  warm start: supervised learning on lookups, then on demonstrations with four of ten actions right as well")
    warm = warm_up(model, seed=seed, steps=size.warm_steps)
    started = learn(warm, out / "warm", fresh=fresh).policies["searcher"]
    print("\n2/2  reinforcement learning: eight episodes a question, reward 1 for the right answer, more hops as it succeeds")
    experiment = search_qa(started, seed=seed, steps=size.steps)
    experiment = replace(experiment, eval_tasks=size.eval_tasks)
    settings = (f"policies.model={started}", f"seed={seed}")
    learn(experiment, out / "rl", fresh=fresh, target="search_qa", settings=settings)
    spent = time.process_time() - cpu
    report(experiment, started, out, spent)


def learn(
    experiment: Experiment[Question, str], out: Path, *, fresh: bool, target: str = "", settings: Sequence[str] = ()
) -> TrainResult:
    """One training with its tables; `target` and `settings` are how `agentrl replay` finds the experiment again."""
    return asyncio.run(train(experiment, out=out, fresh=fresh, target=target, settings=settings))


def report(experiment: Experiment[Question, str], started: Path, out: Path, spent: float) -> None:
    """The table, the curve, and an episode that failed before and succeeds now."""
    before = asyncio.run(evaluate(experiment, policies=started))
    after = asyncio.run(evaluate(experiment, policies=out / "rl"))
    print(f"\nHeld-out questions of the real world, {before.episodes} of them, greedy:\n")
    print(before_after_table(numbers(before), numbers(after)))
    curve = out / "curve.png"
    points = [(step.step, step.values) for step in read_metrics(out / "rl" / "metrics.jsonl")]
    series = {
        "held-out success (greedy)": [
            (step, values["held_out/success"]) for step, values in points if "held_out/success" in values
        ],
        "sampled reward": [(step, values["reward/mean"]) for step, values in points if "reward/mean" in values],
    }
    draw_curve(series, curve, x="learner step", y="success", title="search_qa: reinforcement learning after the warm start")
    show_episode(before, after)
    print(f"\ncurve: {curve}    run: {out / 'rl'}    CPU-seconds of this call: {spent:.0f}")
    print(f"look further:  agentrl view {out / 'rl'}    agentrl replay {out / 'rl'} EPISODE [--fork N]")


def numbers(result: EvalResult) -> dict[str, float]:
    """What the table compares."""
    by_hops: dict[str, list[float]] = {}
    for group in result.groups:
        for episode in group.finished:
            by_hops.setdefault(f"{group.task.hops} hop success", []).append(episode.reward)
    means = {name: sum(rewards) / len(rewards) for name, rewards in sorted(by_hops.items())}
    return {"success": result.success, **means, "turns an episode": result.turns, "searches an episode": result.tool_calls}


def show_episode(before: EvalResult, after: EvalResult) -> None:
    """The hardest question that was failed before and is answered now."""

    def only(result: EvalResult, index: int) -> Any:
        return result.groups[index].episodes[0]

    gained = [i for i in range(len(before.groups)) if only(before, i).reward < only(after, i).reward]
    if not gained:
        print("\nno held-out question was failed before and is answered now")
        return
    index = max(gained, key=lambda i: (before.groups[i].task.hops, -i))
    print(f"\n{before.groups[index].task.text}  (gold: {before.groups[index].task.answer})")
    for name, result in (("before", before), ("after", after)):
        print(f"\n--- {name} ---\n{render_tree(only(result, index))}")


if __name__ == "__main__":
    sys.exit(main())
