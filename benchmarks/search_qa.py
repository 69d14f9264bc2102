"""Does reinforcement learning earn its CPU? The demo's two phases on several seeds, beside the same CPU of supervision alone.

    python benchmarks/search_qa.py --out runs/study --seeds 0 1 2

Goes on where it was stopped, at any point. Prints success on 400 held-out questions of one to four hops that no setting was
chosen on, by seed and by hops, with two 95 % intervals of what RL gains over the control, and draws the curves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from agentrl import Experiment, evaluate, train
from agentrl.engines import Local
from agentrl.evaluate import rollout
from agentrl.metrics import draw_curve, read_metrics
from agentrl.runtime.policies import checkpoints
from agentrl_workflows.search_qa.curriculum import HOPS
from agentrl_workflows.search_qa.demo import Size
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import Question, held_out_questions

FRESH = 1
"""The seed of the held-out questions that figures are told on; settings were chosen on those of seed 0."""
COLUMNS = ("demonstrations", "warm start", "after RL", "supervised alone")
ENOUGH = 0.97
"""The least share of the CPU of warm start and RL together that the control is to get."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a two-sided interval of 95 %, for 1 to 9 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed: the reward of each fresh question by column (greedy; of demonstrations as they come), means of sampled
    episodes, CPU-seconds of each phase with its evaluations, and (CPU-seconds, live held-out success) of both ways."""

    seed: int
    rewards: dict[str, list[float]]
    sampled: dict[str, float]
    cpu: dict[str, float]
    curves: dict[str, list[list[float]]]


def spent(run: Path) -> dict[int, float]:
    """CPU-seconds by step since the run began, over all its sessions; work done twice after a kill counts twice."""
    seconds: dict[int, float] = {}
    before = latest = 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line) if line.endswith("}") else {}  # a kill may have torn a line
        if "session" in entry:
            before, latest = before + latest, 0.0
        elif "cpu_seconds" in entry:
            latest = entry["cpu_seconds"]
            seconds[entry["step"]] = before + latest
    return seconds


def learned(experiment: Experiment[Any, Any], out: Path) -> Path:
    """The weights that a training ends with."""
    return asyncio.run(train(experiment, out=out)).policies["searcher"]


def rewards(experiment: Experiment[Any, Any], weights: Path, tasks: Sequence[Question], *, greedy: bool = True) -> list[float]:
    """The reward of each task's episode, 0 for a lost one."""
    result = asyncio.run(evaluate(replace(experiment, engine=Local()), policies=weights, tasks=tasks, greedy=greedy))
    return [group.finished[0].reward if group.finished else 0.0 for group in result.groups]


def study(seed: int, out: Path, size: Size, questions: int) -> Outcome:
    """Warm start, reinforcement learning, and a supervised run of the CPU of both."""
    done = out / "outcome.json"
    if done.exists():
        return Outcome(**json.loads(done.read_text()))
    model = out / "model"
    if not (model / "config.json").exists():
        make_model(model, seed=seed)
    first = supervised(model, seed, size.warm_steps)
    warm = learned(first, out / "warm")
    experiment = replace(search_qa(warm, seed=seed, steps=size.steps), eval_tasks=size.eval_tasks)
    after = learned(experiment, out / "rl")
    cpu = {"warm start": last(spent(out / "warm")), "after RL": last(spent(out / "rl"))}
    budget = sum(cpu.values())
    alone, control = supervised_alone(model, seed, out, round(size.warm_steps * budget / cpu["warm start"]), budget)
    cpu["supervised alone"] = last(spent(alone))
    fresh = held_out_questions(questions, hops=HOPS, seed=FRESH)
    phases = dict(zip(COLUMNS[1:], (warm, after, control), strict=True))
    episodes = asyncio.run(rollout(first, questions, policies=model, tasks=fresh))
    scored = {COLUMNS[0]: [episode.reward for episode in episodes]}
    scored |= {name: rewards(experiment, weights, fresh) for name, weights in phases.items()}
    sampled = {name: mean(rewards(experiment, weights, fresh, greedy=False)) for name, weights in phases.items()}
    outcome = Outcome(seed, scored, sampled, cpu, curves(out, alone, experiment))
    draft = done.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(outcome)))
    draft.replace(done)
    return outcome


def supervised(model: Path, seed: int, steps: int) -> Experiment[Question, str]:
    """The warm start's own settings over so many steps, with checkpoints for the curve."""
    return replace(warm_up(model, seed=seed, steps=steps), checkpoint_every=max(1, steps // 6), keep_checkpoints=8)


def supervised_alone(model: Path, seed: int, out: Path, steps: int, budget: float) -> tuple[Path, Path]:
    """(run, weights) of the control: it gets the CPU-seconds of `budget`, so one that came out cheaper is run again, longer."""
    while True:
        run = out / f"control-{steps}"
        weights = learned(supervised(model, seed, steps), run)
        if (seconds := last(spent(run))) >= ENOUGH * budget:
            return run, weights
        steps = max(steps + 1, round(steps * budget / seconds))


def last(seconds: Mapping[int, float]) -> float:
    return seconds[max(seconds)]


def curves(out: Path, alone: Path, experiment: Experiment[Question, str]) -> dict[str, list[list[float]]]:
    """Success on the live table's held-out questions over CPU-seconds since the start: with RL, and of the control."""

    def of_checkpoints(run: Path) -> list[list[float]]:
        seconds = spent(run)
        tasks = experiment.held_out[: experiment.eval_tasks]
        saved = checkpoints(run, "searcher")
        steps = [int(weights.name.removeprefix("step-")) for weights in saved]
        return [[seconds[step], mean(rewards(experiment, weights, tasks))] for step, weights in zip(steps, saved, strict=True)]

    begun, seconds = last(spent(out / "warm")), spent(out / "rl")
    live = [step for step in read_metrics(out / "rl" / "metrics.jsonl") if "held_out/success" in step.values]
    learning = [[begun + seconds[step.step], step.values["held_out/success"]] for step in live if step.step]
    return {"RL": [*of_checkpoints(out / "warm"), *learning], "supervised": of_checkpoints(alone)}


def table(outcomes: Sequence[Outcome], tasks: Sequence[Question]) -> str:
    """By seed, the mean, by hops, sampled, and the intervals; Markdown."""
    lines = [
        f"Success on {len(tasks)} fresh held-out questions, greedy; CPU-seconds in brackets:\n",
        "| seed | " + " | ".join(COLUMNS) + " | RL over supervised |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for o in outcomes:
        cells = [f"{mean(o.rewards[name]):.3f}" + (f" ({o.cpu[name]:.0f})" if name in o.cpu else "") for name in COLUMNS]
        lines.append(f"| {o.seed} | " + " | ".join(cells) + f" | {gain(o):+.3f} |")
    lines.append(row("mean", outcomes, lambda o, name: mean(o.rewards[name])))
    lines += [
        row(f"{hops} hop" + "s" * (hops > 1), outcomes, by_hops(tasks, hops)) for hops in sorted({task.hops for task in tasks})
    ]
    lines.append(row("sampled", outcomes, lambda o, name: o.sampled.get(name, mean(o.rewards[name]))))
    return "\n".join([*lines, "", *intervals(outcomes)])


def row(title: str, outcomes: Sequence[Outcome], value: Callable[[Outcome, str], float]) -> str:
    means = [mean(value(o, name) for o in outcomes) for name in COLUMNS]
    return f"| {title} | " + " | ".join(f"{number:.3f}" for number in means) + f" | {means[2] - means[3]:+.3f} |"


def by_hops(tasks: Sequence[Question], hops: int) -> Callable[[Outcome, str], float]:
    chosen = [index for index, task in enumerate(tasks) if task.hops == hops]
    return lambda outcome, name: mean(outcome.rewards[name][index] for index in chosen)


def gain(outcome: Outcome) -> float:
    """RL over the control, on average over the questions."""
    return mean(outcome.rewards["after RL"]) - mean(outcome.rewards["supervised alone"])


def intervals(outcomes: Sequence[Outcome]) -> list[str]:
    """95 % intervals of RL over the control: over seeds (paired t), and over questions with the seeds as they are."""
    gains = [gain(outcome) for outcome in outcomes]
    lines = []
    if 1 < len(gains) <= len(T_95) + 1:
        half = T_95[len(gains) - 2] * stdev(gains) / math.sqrt(len(gains))
        low, high = mean(gains) - half, mean(gains) + half
        lines.append(f"RL over supervised: {mean(gains):+.3f}; 95 %: {low:+.3f} to {high:+.3f} (paired t, {len(gains)} seeds)")
    one, other = (np.array([o.rewards[name] for o in outcomes]).mean(axis=0) for name in COLUMNS[2:])
    drawn = np.random.default_rng(0).integers(len(one), size=(10_000, len(one)))
    low, high = np.percentile((one - other)[drawn].mean(axis=1), (2.5, 97.5))
    lines.append(f"RL over supervised: {mean(gains):+.3f}; 95 %: {low:+.3f} to {high:+.3f} (bootstrap, {len(one)} questions)")
    return lines


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--warm-steps", type=int, default=Size().warm_steps)
    parser.add_argument("--steps", type=int, default=Size().steps)
    parser.add_argument("--questions", type=int, default=400, help="fresh held-out questions")
    options = parser.parse_args()
    size = Size(options.warm_steps, options.steps)
    outcomes = [study(seed, options.out / str(seed), size, options.questions) for seed in options.seeds]
    print(table(outcomes, held_out_questions(options.questions, hops=HOPS, seed=FRESH)))
    picture = options.out / "curves.png"
    lines = {f"{name}, seed {o.seed}": [(x, y) for x, y in o.curves[name]] for name in ("RL", "supervised") for o in outcomes}
    title = "search_qa: RL beside the same CPU of supervision"
    draw_curve(lines, picture, x="CPU-seconds", y="held-out success (greedy)", title=title)
    print(f"curves: {picture}")


if __name__ == "__main__":
    main()
