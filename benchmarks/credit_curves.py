"""One learning curve for each family of estimators, on search_qa, at equal tokens by the ledger.

    python benchmarks/credit_curves.py --out runs/credit_curves --seeds 0 1 2 [--jobs 2] [--families group tree]

Each seed has one warm start, from which every family trains with the same tasks, optimiser and objective until its runs have
paid `--tokens` tokens: all that was drawn (of branches, references and episodes that were lost as well) and all that probes
scored. Goes on where it was stopped, at any point. Prints a table and draws success over tokens paid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from learning_study import FRESH, last, learned, rewards, spent

from agentrl import Experiment, train
from agentrl.config import apply_settings
from agentrl.learning.optimisers import Muon
from agentrl.metrics import JSONL, StepMetrics, draw_curve, read_metrics
from agentrl.runtime.policies import checkpoints
from agentrl.tasks import Uniform
from agentrl_workflows.search_qa.experiment import search_qa, warm_up
from agentrl_workflows.search_qa.model import make_model
from agentrl_workflows.search_qa.questions import held_out_questions, train_questions

ANSWER = "probes=agentrl_workflows.search_qa.experiment:ANSWER"
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "group": ("credit=grpo",),
    "turn": ("credit=gtpo_turn",),
    "state": ("credit=gigpo",),
    "tree": ("credit=tree_grpo", "rollout=random_tree", "rollout.trees=2", "rollout.expand=3"),
    "probe": ("credit=igpo", ANSWER),
    "reference": (
        "credit=pvpo",
        "rollout=referenced",
        "rollout.samples=4",
        "reference=on",
        "reference.model={warm}",
    ),
}
"""What each family's run is told on the command line; eight episodes a question in all of them."""
HOPS = (2, 3, 4)
TASKS = 512
"""Training questions, walked through again and again."""
WARM_STEPS = 320
PAID = ("tokens/sampled", "tokens/probe")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: (tokens paid, held-out success) as it went, success on fresh questions before and after, what it took."""

    family: str
    seed: int
    points: list[list[float]]
    before: float
    after: float
    paid: float
    steps: int
    cpu: float


class Budget:
    """A sink that stops the run once it has paid so many tokens, those of its earlier sessions included."""

    def __init__(self, tokens: float, stop: asyncio.Event, before: Mapping[int, float]) -> None:
        self.tokens, self.stop, self.paid = tokens, stop, dict(before)

    def write(self, metrics: StepMetrics) -> None:
        """See `Sink`."""
        self.paid[metrics.step] = paid(metrics)
        if sum(number for step, number in self.paid.items() if step <= metrics.step) >= self.tokens:
            self.stop.set()

    def note(self, text: str) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """See `Sink`."""


def paid(metrics: StepMetrics) -> float:
    """Tokens that a batch's episodes paid, by their ledgers."""
    return sum(metrics.values.get(name, 0.0) for name in PAID)


def experiment_of(family: str, seed: int, warm: Path) -> Experiment[Any, Any]:
    """`search_qa` with a constant rate, for a run that ends by tokens knows no last step; all else is the family's."""
    experiment = search_qa(warm, seed=seed, steps=100_000)
    policy = replace(experiment.by_name["searcher"], optimiser=Muon(lr=0.0015, adamw_lr=1.5e-4))
    common = replace(
        experiment,
        policies=policy,
        tasks=Uniform(train_questions(TASKS, hops=HOPS, seed=seed), seed=seed),
        held_out=held_out_questions(120, hops=HOPS),
        eval_every=15,
        checkpoint_every=50,
    )
    return apply_settings(common, [setting.format(warm=warm) for setting in FAMILIES[family]])


async def spend(experiment: Experiment[Any, Any], out: Path, tokens: float) -> Path:
    """Trains until the ledger says so; the weights it ends with."""
    stop, file = asyncio.Event(), out / "metrics.jsonl"
    before = {step.step: paid(step) for step in read_metrics(file)} if file.exists() else {}
    sinks = [JSONL(file), Budget(tokens, stop, before)]
    try:
        return (await train(experiment, out=out, sinks=sinks, stop=stop)).policies["searcher"]
    finally:
        sinks[0].close()


def curve(family: str, seed: int, out: Path, tokens: float) -> Outcome:
    """One run and what came of it; read back where it is done."""
    done = out / f"{family}.json"
    if done.exists():
        return Outcome(**json.loads(done.read_text()))
    warm = start(seed, out)
    experiment = experiment_of(family, seed, warm)
    after = asyncio.run(spend(experiment, out / family, tokens))
    steps = read_metrics(out / family / "metrics.jsonl")
    total, points = 0.0, []
    for step in steps:
        total += paid(step)
        if "held_out/success" in step.values:
            points.append([total, step.values["held_out/success"]])
    fresh = held_out_questions(400, hops=HOPS, seed=FRESH)
    before, ended = (mean(rewards(experiment, weights, fresh)) for weights in (warm, after))
    outcome = Outcome(family, seed, points, before, ended, total, steps[-1].step, last(spent(out / family)))
    draft = done.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(outcome)))
    draft.replace(done)
    return outcome


def start(seed: int, out: Path) -> Path:
    """The weights that all families of a seed begin from."""
    if not (out / "model" / "config.json").exists():
        make_model(out / "model", seed=seed)
    begun = checkpoints(out / "warm", "searcher") if (out / "warm").exists() else ()
    if begun and begun[-1].name == f"step-{WARM_STEPS:06d}":
        return begun[-1]
    return learned(warm_up(out / "model", seed=seed, steps=WARM_STEPS), out / "warm")


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each family: means over its seeds, the range of where they ended, and what they paid; Markdown."""
    lines = [
        "| family | run | before | after | range | over group | tokens paid | steps | CPU-seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    group = {o.seed: o.after for o in outcomes if o.family == "group"}
    for family in dict.fromkeys(o.family for o in outcomes):
        own = [o for o in outcomes if o.family == family]
        gains = [o.after - group[o.seed] for o in own if o.seed in group]
        ends = sorted(o.after for o in own)
        cells = [
            family,
            " ".join(f"`{part}`" for part in FAMILIES[family]),
            f"{mean(o.before for o in own):.3f}",
            f"{mean(ends):.3f}",
            f"{ends[0]:.3f} to {ends[-1]:.3f}",
            f"{mean(gains):+.3f}" if gains else "",
            f"{mean(o.paid for o in own):,.0f}",
            f"{mean(o.steps for o in own):.0f}",
            f"{mean(o.cpu for o in own):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def averaged(outcomes: Sequence[Outcome], tokens: float, parts: int = 8) -> dict[str, list[tuple[float, float]]]:
    """For each family held-out success at equal tokens: the mean over seeds of what lies on each one's line."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for family in dict.fromkeys(o.family for o in outcomes):
        own = [o.points for o in outcomes if o.family == family]
        places = [tokens * part / parts for part in range(parts + 1)]
        lines[family] = [(x, mean(between(points, x) for points in own)) for x in places]
    return lines


def between(points: Sequence[Sequence[float]], x: float) -> float:
    """The line through the points at x; the last point beyond them."""
    import numpy as np

    return float(np.interp(x, [point[0] for point in points], [point[1] for point in points]))


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/credit_curves"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--tokens", type=float, default=80_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    folders = {seed: options.out / str(seed) for seed in options.seeds}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for begun in [pool.submit(start, seed, folder) for seed, folder in folders.items()]:
            begun.result()
        runs = [
            pool.submit(curve, family, seed, folders[seed], options.tokens) for seed in folders for family in options.families
        ]
        outcomes = sorted((run.result() for run in runs), key=lambda o: (list(FAMILIES).index(o.family), o.seed))
    print(table(outcomes))
    picture = options.out / "curves.png"
    draw_curve(
        averaged(outcomes, options.tokens), picture, x="tokens paid", y="held-out success (greedy)",
        title=f"search_qa by family of credit, mean of {len(folders)} seeds",
    )  # fmt: skip
    print(f"curves: {picture}")


if __name__ == "__main__":
    main()
