"""Does reinforcement learning earn its CPU? The demo's two phases on several seeds, beside the same CPU of supervision alone.

    python benchmarks/search_qa.py --out runs/study --seeds 0 1 2

Goes on where it was stopped. Prints one table (success on 400 held-out questions that no setting was chosen on) and draws
the curves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from agentrl import Experiment, evaluate, train
from agentrl.metrics import draw_curve, read_metrics
from agentrl.runtime.policies import checkpoints
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import held_out_questions

WARM_STEPS, RL_STEPS = 240, 120
QUESTIONS = 400


@dataclass(frozen=True, slots=True)
class Outcome:
    """Success on the fresh questions and CPU-seconds, of one seed."""

    seed: int
    warm: float
    rl: float
    control: float
    warm_cpu: float
    rl_cpu: float
    control_cpu: float


def cpu_of(run: Path) -> float:
    """CPU-seconds of a run that was not interrupted, evaluations included."""
    return max(step.values["cpu_seconds"] for step in read_metrics(run / "metrics.jsonl") if "cpu_seconds" in step.values)


def learned(experiment: Experiment[Any, Any], out: Path) -> Path:
    """The weights that a training ends with."""
    return asyncio.run(train(experiment, out=out)).policies["searcher"]


def success(experiment: Experiment[Any, Any], weights: Path) -> float:
    """Greedy success on questions that no setting was chosen on."""
    fresh = held_out_questions(QUESTIONS, hops=(1, 2), seed=1)
    return asyncio.run(evaluate(replace(experiment, eval_tasks=None), policies=weights, tasks=fresh)).success


def study(seed: int, out: Path) -> Outcome:
    """Warm start, reinforcement learning, and a supervised run of the CPU of both."""
    done = out / "outcome.json"
    if done.exists():
        return Outcome(**json.loads(done.read_text()))
    model = out / "model"
    if not (model / "config.json").exists():
        make_model(model, seed=seed)
    warm = learned(warm_up(model, seed=seed, steps=WARM_STEPS), out / "warm")
    experiment = search_qa(warm, seed=seed, steps=RL_STEPS)
    after = learned(experiment, out / "rl")
    warm_cpu, rl_cpu = cpu_of(out / "warm"), cpu_of(out / "rl")
    longer = round(WARM_STEPS * (warm_cpu + rl_cpu) / warm_cpu)
    longer_warm_up = replace(warm_up(model, seed=seed, steps=longer), checkpoint_every=longer // 6, keep_checkpoints=8)
    control = learned(longer_warm_up, out / "control")
    numbers = [success(experiment, weights) for weights in (warm, after, control)]
    outcome = Outcome(seed, *numbers, warm_cpu, rl_cpu, cpu_of(out / "control"))
    done.write_text(json.dumps({name: getattr(outcome, name) for name in Outcome.__slots__}))
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a seed, then the means."""
    lines = [
        f"success on {QUESTIONS} fresh held-out questions; CPU-seconds of each phase in brackets",
        "seed | warm start | after RL | gain | supervised alone | RL over supervised",
    ]
    for o in outcomes:
        lines.append(
            f"{o.seed:4} | {o.warm:.3f} ({o.warm_cpu:3.0f}) | {o.rl:.3f} (+{o.rl_cpu:3.0f}) | {o.rl - o.warm:+.3f} | "
            f"{o.control:.3f} ({o.control_cpu:3.0f}) | {o.rl - o.control:+.3f}"
        )
    warm, rl, control = (mean(getattr(o, name) for o in outcomes) for name in ("warm", "rl", "control"))
    lines.append(f"mean | {warm:.3f} | {rl:.3f} | {rl - warm:+.3f} | {control:.3f} | {rl - control:+.3f}")
    return "\n".join(lines)


def curves(out: Path, seeds: Sequence[int]) -> Mapping[str, list[tuple[float, float]]]:
    """Held-out success (the 200 questions of the live table) over CPU-seconds since the start, by seed."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        folder = out / str(seed)
        begun = cpu_of(folder / "warm")
        steps = [step.values for step in read_metrics(folder / "rl" / "metrics.jsonl") if "held_out/success" in step.values]
        lines[f"RL, seed {seed}"] = [(begun + values.get("cpu_seconds", 0.0), values["held_out/success"]) for values in steps]
        spent = {step.step: step.values["cpu_seconds"] for step in read_metrics(folder / "control" / "metrics.jsonl")}
        saved = checkpoints(folder / "control", "searcher")
        asked = search_qa(saved[0], seed=seed)
        lines[f"supervised, seed {seed}"] = [
            (spent[int(weights.name.removeprefix("step-"))], asyncio.run(evaluate(asked, policies=weights)).success)
            for weights in saved
        ]
    return lines


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    outcomes = [study(seed, options.out / str(seed)) for seed in options.seeds]
    print(table(outcomes))
    picture = options.out / "curves.png"
    title = "search_qa: RL beside the same CPU of supervision"
    draw_curve(curves(options.out, options.seeds), picture, x="CPU-seconds", y="held-out success (greedy)", title=title)
    print(f"curves: {picture}")


if __name__ == "__main__":
    main()
