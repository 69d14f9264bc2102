"""Does reinforcement learning earn its CPU? A warm start, RL after it, and beside both the same CPU of supervision alone.

What `search_qa.py` and `code_tests.py` share: a `Study` says what is learned, `main` runs it on several seeds, goes on where it
was stopped, and prints success on held-out tasks that no setting was chosen on, with two 95 % intervals of what RL gains.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import numpy as np

from agentrl import Experiment, evaluate, train
from agentrl.engines import Local
from agentrl.evaluate import rollout
from agentrl.metrics import draw_curve, read_metrics
from agentrl.runtime.policies import checkpoints

AnyExperiment: TypeAlias = "Experiment[Any, Any]"
FRESH = 1
"""The seed of the held-out tasks that figures are told on; settings were chosen on those of seed 0."""
COLUMNS = ("demonstrations", "warm start", "after RL", "supervised alone")
ENOUGH = 0.97
"""The least share of the CPU of warm start and RL together that the control is to get."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for a two-sided interval of 95 %, for 1 to 9 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is learned: models and experiments by seed, and the tasks on which success is told."""

    name: str
    model: Callable[[Path, int], None]
    """Makes the folder of untrained weights, for a seed."""
    warm_up: Callable[[Path, int, int], AnyExperiment]
    """The supervised experiment, for a model, a seed and a number of steps."""
    learn: Callable[[Path, int, int], AnyExperiment]
    """The same of reinforcement learning."""
    steps: tuple[int, int]
    """Of both."""
    fresh: Callable[[int], Sequence[Any]]
    """So many held-out tasks."""
    count: int
    kind: Callable[[Any], str]
    """What a task's row in the table is."""
    points: int
    """Of a supervised curve."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed: the reward of each fresh task by column (greedy; of demonstrations as they come), means of sampled episodes,
    CPU-seconds of each phase with its evaluations, and (CPU-seconds, live held-out success) of both ways."""

    seed: int
    rewards: dict[str, list[float]]
    sampled: dict[str, float]
    cpu: dict[str, float]
    curves: dict[str, list[list[float]]]


def spent(run: Path) -> dict[int, float]:
    """CPU-seconds of the process by step, over all sessions of the run; what was done twice after a kill counts twice."""
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


def last(seconds: Mapping[int, float]) -> float:
    return seconds[max(seconds)]


def of_sandboxes(run: Path) -> float:
    """CPU-seconds of a training's sandboxes. Those of a session that was killed are not known, and not counted."""
    file = run / "sandboxes.json"
    return json.loads(file.read_text()) if file.exists() else 0.0


def cost(run: Path) -> float:
    """CPU-seconds of a training, its sandboxes included."""
    return last(spent(run)) + of_sandboxes(run)


def children() -> float:
    """CPU-seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def learned(experiment: AnyExperiment, out: Path) -> Path:
    """The weights that a training ends with; what its sandboxes cost is added up beside them, until it is done."""
    (policy,) = experiment.by_name
    done = checkpoints(out, policy)[-1:] == [out / f"checkpoints/{policy}/step-{experiment.steps:06d}"]
    before = children()
    weights = asyncio.run(train(experiment, out=out)).policies[policy]
    if not done:
        (out / "sandboxes.json").write_text(json.dumps(of_sandboxes(out) + children() - before))
    return weights


def rewards(experiment: AnyExperiment, weights: Path, tasks: Sequence[Any], *, greedy: bool = True) -> list[float]:
    """The reward of each task's episode, 0 for a lost one."""
    result = asyncio.run(evaluate(replace(experiment, engine=Local()), policies=weights, tasks=tasks, greedy=greedy))
    return [group.finished[0].reward if group.finished else 0.0 for group in result.groups]


def run_seed(study: Study, seed: int, out: Path) -> Outcome:
    """Warm start, reinforcement learning, and a supervised run of the CPU of both."""
    done = out / "outcome.json"
    if done.exists():
        return Outcome(**json.loads(done.read_text()))
    model, (warm_steps, steps) = out / "model", study.steps
    if not (model / "config.json").exists():
        study.model(model, seed)
    first = supervised(study, model, seed, warm_steps)
    warm = learned(first, out / "warm")
    experiment = study.learn(warm, seed, steps)
    after = learned(experiment, out / "rl")
    cpu = {"warm start": cost(out / "warm"), "after RL": cost(out / "rl")}
    budget = sum(cpu.values())
    alone, control = supervised_alone(study, model, seed, out, round(warm_steps * budget / cpu["warm start"]), budget)
    cpu["supervised alone"] = cost(alone)
    fresh = study.fresh(study.count)
    phases = dict(zip(COLUMNS[1:], (warm, after, control), strict=True))
    episodes = asyncio.run(rollout(first, study.count, policies=model, tasks=fresh))
    scored = {COLUMNS[0]: [episode.reward for episode in episodes]}
    scored |= {name: rewards(experiment, weights, fresh) for name, weights in phases.items()}
    sampled = {name: mean(rewards(experiment, weights, fresh, greedy=False)) for name, weights in phases.items()}
    outcome = Outcome(seed, scored, sampled, cpu, curves(out, alone, experiment))
    draft = done.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(outcome)))
    draft.replace(done)
    return outcome


def supervised(study: Study, model: Path, seed: int, steps: int) -> AnyExperiment:
    """The warm start's own settings over so many steps, with checkpoints for the curve."""
    every = max(1, steps // study.points)
    return replace(study.warm_up(model, seed, steps), checkpoint_every=every, keep_checkpoints=study.points + 2)


def supervised_alone(study: Study, model: Path, seed: int, out: Path, steps: int, budget: float) -> tuple[Path, Path]:
    """(run, weights) of the control: it gets the CPU-seconds of `budget`, so one that came out cheaper is run again, longer."""
    while True:
        run = out / f"control-{steps}"
        weights = learned(supervised(study, model, seed, steps), run)
        if cost(run) >= ENOUGH * budget:
            return run, weights
        steps = max(steps + 1, round(steps * budget / cost(run)))


def curves(out: Path, alone: Path, experiment: AnyExperiment) -> dict[str, list[list[float]]]:
    """Success on the live table's held-out tasks over CPU-seconds since the start: with RL, and of the control. What the
    sandboxes of a training cost is spread evenly over it."""
    (policy,) = experiment.by_name

    def of_checkpoints(run: Path) -> list[list[float]]:
        seconds = spent(run)
        tasks = experiment.held_out[: experiment.eval_tasks]
        saved = checkpoints(run, policy)
        steps = [int(weights.name.removeprefix("step-")) for weights in saved]
        return [[seconds[step], mean(rewards(experiment, weights, tasks))] for step, weights in zip(steps, saved, strict=True)]

    begun, seconds = cost(out / "warm"), spent(out / "rl")
    share = cost(out / "rl") / last(seconds)
    live = [step for step in read_metrics(out / "rl" / "metrics.jsonl") if "held_out/success" in step.values]
    learning = [[begun + share * seconds[step.step], step.values["held_out/success"]] for step in live if step.step]
    return {"RL": [*of_checkpoints(out / "warm"), *learning], "supervised": of_checkpoints(alone)}


def table(outcomes: Sequence[Outcome], kinds: Sequence[str]) -> str:
    """By seed, the mean, by kind of task, sampled, and the intervals; Markdown."""
    lines = [
        f"Success on {len(kinds)} fresh held-out tasks, greedy; CPU-seconds in brackets:\n",
        "| seed | " + " | ".join(COLUMNS) + " | RL over supervised |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for o in outcomes:
        cells = [f"{mean(o.rewards[name]):.3f}" + (f" ({o.cpu[name]:.0f})" if name in o.cpu else "") for name in COLUMNS]
        lines.append(f"| {o.seed} | " + " | ".join(cells) + f" | {gain(o):+.3f} |")
    lines.append(row("mean", outcomes, lambda o, name: mean(o.rewards[name])))
    lines += [row(kind, outcomes, of_kind(kinds, kind)) for kind in sorted(set(kinds))]
    lines.append(row("sampled", outcomes, lambda o, name: o.sampled.get(name, mean(o.rewards[name]))))
    return "\n".join([*lines, "", *intervals(outcomes)])


def row(title: str, outcomes: Sequence[Outcome], value: Callable[[Outcome, str], float]) -> str:
    means = [mean(value(o, name) for o in outcomes) for name in COLUMNS]
    return f"| {title} | " + " | ".join(f"{number:.3f}" for number in means) + f" | {means[2] - means[3]:+.3f} |"


def of_kind(kinds: Sequence[str], kind: str) -> Callable[[Outcome, str], float]:
    chosen = [index for index, found in enumerate(kinds) if found == kind]
    return lambda outcome, name: mean(outcome.rewards[name][index] for index in chosen)


def gain(outcome: Outcome) -> float:
    """RL over the control, on average over the tasks."""
    return mean(outcome.rewards["after RL"]) - mean(outcome.rewards["supervised alone"])


def intervals(outcomes: Sequence[Outcome]) -> list[str]:
    """95 % intervals of RL over the control: over seeds (paired t), and over tasks with the seeds as they are."""
    gains = [gain(outcome) for outcome in outcomes]
    lines: list[str] = []
    if 1 < len(gains) <= len(T_95) + 1:
        half = T_95[len(gains) - 2] * stdev(gains) / math.sqrt(len(gains))
        low, high = mean(gains) - half, mean(gains) + half
        lines.append(f"RL over supervised: {mean(gains):+.3f}; 95 %: {low:+.3f} to {high:+.3f} (paired t, {len(gains)} seeds)")
    one, other = (np.array([o.rewards[name] for o in outcomes]).mean(axis=0) for name in COLUMNS[2:])
    drawn = np.random.default_rng(0).integers(len(one), size=(10_000, len(one)))
    low, high = np.percentile((one - other)[drawn].mean(axis=1), (2.5, 97.5))
    lines.append(f"RL over supervised: {mean(gains):+.3f}; 95 %: {low:+.3f} to {high:+.3f} (bootstrap, {len(one)} tasks)")
    return lines


def main(study: Study, about: str | None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / f"{study.name}_study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--warm-steps", type=int, default=study.steps[0])
    parser.add_argument("--steps", type=int, default=study.steps[1])
    parser.add_argument("--tasks", type=int, default=study.count, help="fresh held-out tasks")
    options = parser.parse_args()
    study = replace(study, steps=(options.warm_steps, options.steps), count=options.tasks)
    outcomes = [run_seed(study, seed, options.out / str(seed)) for seed in options.seeds]
    print(table(outcomes, [study.kind(task) for task in study.fresh(study.count)]))
    picture = options.out / "curves.png"
    lines = {f"{name}, seed {o.seed}": [(x, y) for x, y in o.curves[name]] for name in ("RL", "supervised") for o in outcomes}
    title = f"{study.name}: RL beside the same CPU of supervision"
    draw_curve(lines, picture, x="CPU-seconds", y="held-out success (greedy)", title=title)
    print(f"curves: {picture}")
