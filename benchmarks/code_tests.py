"""Does reinforcement learning earn its CPU where code runs in sandboxes? Beside it, the same CPU of supervision alone.

    python benchmarks/code_tests.py --out runs/code_study --seeds 0 1 2

Goes on where it was stopped. CPU-seconds are those of the process and of its sandboxes (those of a session that was killed are
not known, and not counted). Prints success on held-out problems that no setting was chosen on, and
draws the curves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from search_qa import COLUMNS, ENOUGH, FRESH, Outcome, gain, intervals, last, rewards, row, spent

from agentrl import Experiment, train
from agentrl.evaluate import rollout
from agentrl.metrics import draw_curve, read_metrics
from agentrl.runtime.policies import checkpoints
from agentrl_workflows.code_tests.experiment import STAGES, STEPS, WARM_STEPS, code_tests, warm_up
from agentrl_workflows.code_tests.model import make_model
from agentrl_workflows.code_tests.pipelines import held_out_problems
from agentrl_workflows.code_tests.problems import Problem
from agentrl_workflows.code_tests.workflow import Passed

Run = Experiment[Problem, Passed]


def learned(experiment: Run, out: Path) -> Path:
    """The weights that a training ends with; what its sandboxes cost is added up beside them, until it is done."""
    done, before = checkpoints(out, "coder")[-1:] == [out / f"checkpoints/coder/step-{experiment.steps:06d}"], sandboxes()
    weights = asyncio.run(train(experiment, out=out)).policies["coder"]
    if not done:
        (out / "sandboxes.json").write_text(json.dumps(kept(out) + sandboxes() - before))
    return weights


def kept(run: Path) -> float:
    """CPU-seconds of a training's sandboxes, over its sessions that came to an end."""
    file = run / "sandboxes.json"
    return json.loads(file.read_text()) if file.exists() else 0.0


def sandboxes() -> float:
    """CPU-seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cost(run: Path) -> float:
    """CPU-seconds of a training, sandboxes included."""
    return last(spent(run)) + kept(run)


def study(seed: int, out: Path, warm_steps: int, steps: int, problems: int) -> Outcome:
    """Warm start, reinforcement learning, and a supervised run of the CPU of both."""
    done = out / "outcome.json"
    if done.exists():
        return Outcome(**json.loads(done.read_text()))
    model = out / "model"
    if not (model / "config.json").exists():
        make_model(model, seed=seed)
    first = supervised(model, seed, warm_steps)
    warm = learned(first, out / "warm")
    experiment = code_tests(warm, seed=seed, steps=steps)
    after = learned(experiment, out / "rl")
    cpu = {"warm start": cost(out / "warm"), "after RL": cost(out / "rl")}
    budget = sum(cpu.values())
    alone, control = supervised_alone(model, seed, out, round(warm_steps * budget / cpu["warm start"]), budget)
    cpu["supervised alone"] = cost(alone)
    fresh = held_out_problems(problems, stages=STAGES, seed=FRESH)
    phases = dict(zip(COLUMNS[1:], (warm, after, control), strict=True))
    episodes = asyncio.run(rollout(first, problems, policies=model, tasks=fresh))
    scored = {COLUMNS[0]: [episode.reward for episode in episodes]}
    scored |= {name: rewards(experiment, weights, fresh) for name, weights in phases.items()}
    sampled = {name: mean(rewards(experiment, weights, fresh, greedy=False)) for name, weights in phases.items()}
    outcome = Outcome(seed, scored, sampled, cpu, curves(out, alone, experiment))
    draft = done.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(outcome)))
    draft.replace(done)
    return outcome


def supervised(model: Path, seed: int, steps: int) -> Run:
    """The warm start's own settings over so many steps, with checkpoints for the curve."""
    return replace(warm_up(model, seed=seed, steps=steps), checkpoint_every=max(1, steps // 4), keep_checkpoints=6)


def supervised_alone(model: Path, seed: int, out: Path, steps: int, budget: float) -> tuple[Path, Path]:
    """(run, weights) of the control: one that came out cheaper than the budget is run again, longer."""
    while True:
        run = out / f"control-{steps}"
        weights = learned(supervised(model, seed, steps), run)
        if cost(run) >= ENOUGH * budget:
            return run, weights
        steps = max(steps + 1, round(steps * budget / cost(run)))


def curves(out: Path, alone: Path, experiment: Run) -> dict[str, list[list[float]]]:
    """Success on the live table's held-out problems over CPU-seconds, with RL (sandboxes spread evenly) and of the control."""

    def of_checkpoints(run: Path) -> list[list[float]]:
        seconds = spent(run)
        saved = checkpoints(run, "coder")[1::2]
        steps = [int(weights.name.removeprefix("step-")) for weights in saved]
        tasks = experiment.held_out[: experiment.eval_tasks]
        return [[seconds[step], mean(rewards(experiment, weights, tasks))] for step, weights in zip(steps, saved, strict=True)]

    begun, seconds = cost(out / "warm"), spent(out / "rl")
    share = cost(out / "rl") / last(seconds)
    live = [step for step in read_metrics(out / "rl" / "metrics.jsonl") if "held_out/success" in step.values and step.step]
    learning = [[begun + share * seconds[step.step], step.values["held_out/success"]] for step in live]
    return {"RL": [*of_checkpoints(out / "warm"), *learning], "supervised": of_checkpoints(alone)}


def table(outcomes: Sequence[Outcome], tasks: Sequence[Problem]) -> str:
    """By seed, the mean, by kind, sampled, and the intervals; Markdown."""
    lines = [
        f"Success on {len(tasks)} fresh held-out problems, greedy; CPU-seconds in brackets:\n",
        "| seed | " + " | ".join(COLUMNS) + " | RL over supervised |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for o in outcomes:
        cells = [f"{mean(o.rewards[name]):.3f}" + (f" ({o.cpu[name]:.0f})" if name in o.cpu else "") for name in COLUMNS]
        lines.append(f"| {o.seed} | " + " | ".join(cells) + f" | {gain(o):+.3f} |")
    lines.append(row("mean", outcomes, lambda o, name: mean(o.rewards[name])))
    lines += [row(kind, outcomes, of_kind(tasks, kind)) for kind in sorted({task.kind for task in tasks})]
    lines.append(row("sampled", outcomes, lambda o, name: o.sampled.get(name, mean(o.rewards[name]))))
    return "\n".join([*lines, "", *intervals(outcomes)])


def of_kind(tasks: Sequence[Problem], kind: str) -> Callable[[Outcome, str], float]:
    chosen = [index for index, task in enumerate(tasks) if task.kind == kind]
    return lambda outcome, name: mean(outcome.rewards[name][index] for index in chosen)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/code_study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--warm-steps", type=int, default=WARM_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--problems", type=int, default=200, help="fresh held-out problems")
    options = parser.parse_args()
    parts: Any = (options.warm_steps, options.steps, options.problems)
    outcomes = [study(seed, options.out / str(seed), *parts) for seed in options.seeds]
    print(table(outcomes, held_out_problems(options.problems, stages=STAGES, seed=FRESH)))
    picture = options.out / "curves.png"
    lines = {f"{name}, seed {o.seed}": [(x, y) for x, y in o.curves[name]] for name in ("RL", "supervised") for o in outcomes}
    title = "code_tests: RL beside the same CPU of supervision"
    draw_curve(lines, picture, x="CPU-seconds, sandboxes included", y="held-out success (greedy)", title=title)
    print(f"curves: {picture}")


if __name__ == "__main__":
    main()
