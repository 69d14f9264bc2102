"""From an experiment to what the loop needs, refusing before the first token what cannot run."""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrl.config import experiment_json
from agentrl.engines.specs import SGLang, own_renderer
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner
from agentrl.learning.lora import LoRA
from agentrl.metrics import JSONL, Console, OfRun, Sink, TensorBoard, sink_named
from agentrl.runtime.policies import model_folder
from agentrl.tasks import TaskSource, Uniform

logger = logging.getLogger(__name__)


def check(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for what an experiment lacks to be trained."""
    if isinstance(experiment.tasks, Sequence) and not len(experiment.tasks):
        raise UserError("an experiment needs tasks to train on: Experiment(..., tasks=read_tasks(Task, FILE))")
    if experiment.reward is None and experiment.engine.source != "demonstration":
        raise UserError("an experiment needs a reward to train on: Experiment(..., reward=function of (task, output, episode))")
    if experiment.engine.source == "demonstration" and experiment.eval_every and len(experiment.held_out):
        logger.warning("held-out success in this run is that of the demonstrations, not of the policy that learns from them")
    trained = [policy for policy in experiment.by_name.values() if not policy.frozen]
    if not trained:
        raise UserError("all policies are frozen; nothing would be trained")
    for policy in experiment.by_name.values():
        if own_renderer(experiment.engine, policy.name) is not None:
            if policy.frozen:
                continue
            raise UserError(
                f"policy {policy.name!r} is to be trained, but its engine gives no token ids; freeze it (frozen=True), or "
                "serve it with an engine that gives them"
            )
        if not str(policy.model):
            raise UserError(
                f"policy {policy.name!r} has no model; Policy({policy.name!r}, model=FOLDER) or --set policies.model=FOLDER"
            )
        if not (folder := model_folder(policy)).joinpath("config.json").is_file():
            raise UserError(f"policy {policy.name!r}: {folder} is no model folder (it has no config.json)")
    needs = experiment.credit.needs
    if needs.group > experiment.rollout.size:
        method = type(experiment.credit).__name__
        raise UserError(
            f"{method} compares at least {needs.group} episodes of a task, the rollout plan gives {experiment.rollout.size}; "
            f"--set rollout.size={needs.group}"
        )
    if needs.forks and not experiment.rollout.forks:
        method, plan = type(experiment.credit).__name__, type(experiment.rollout).__name__
        raise UserError(f"{method} compares rollouts that branch, {plan} gives none; --set rollout=random_tree")
    unasked = [name for name in needs.probes if name not in {probe.name for probe in experiment.probes}]
    if unasked:
        raise UserError(
            f"{type(experiment.credit).__name__} needs the probe {', '.join(map(repr, unasked))}, which nothing asks; "
            "Experiment(..., probes=(AnswerProbe(answer=function of the task),)) or a probe of this name of your own"
        )
    lacking = [name for name in ("reference_rewards", "candidates") if getattr(needs, name)]
    if lacking:
        raise UserError(f"{type(experiment.credit).__name__} needs {', '.join(lacking)} recorded, which nothing here records")


def open_learners(experiment: Experiment[Any, Any], lineage: str) -> dict[str, Learner]:
    """A learner for every policy that is not frozen."""
    try:
        from agentrl.learning.local import LocalLearner
    except ModuleNotFoundError as error:
        raise UserError(f'learning needs {error.name}; pip install "agentrl-runtime[local]"') from error
    return {
        name: LocalLearner(
            name,
            model_folder(policy),
            experiment.objective,
            optimiser=policy.optimiser,
            lora=policy.lora if isinstance(policy.lora, LoRA) else None,
            microbatch_tokens=experiment.microbatch_tokens,
            threads=experiment.threads,
            lineage=lineage,
        )
        for name, policy in experiment.by_name.items()
        if not policy.frozen
    }


def placed(experiment: Experiment[Any, Any], folder: Path) -> Experiment[Any, Any]:
    """An engine that launches servers has their logs in the run's folder."""
    engine = experiment.engine
    if isinstance(engine, SGLang) and engine.launch and not engine.logs:
        return replace(experiment, engine=replace(engine, logs=str(folder / "engines")))
    return experiment


def open_source(experiment: Experiment[Any, Any]) -> TaskSource[Any]:
    """The experiment's task source, or its tasks one after the other, shuffled every epoch."""
    tasks = experiment.tasks
    return tasks if not isinstance(tasks, Sequence) else Uniform(tasks, seed=experiment.seed)


@contextmanager
def open_sinks(experiment: Experiment[Any, Any], folder: Path, sinks: Sequence[Sink | str] | None) -> Generator[Sequence[Sink]]:
    """The sinks of a run, told which it is: those given, names resolved; for None a table for people, metrics.jsonl, and
    TensorBoard where it is installed. Closes those that it made itself."""
    with ExitStack() as stack:

        def made(sink: Sink) -> Sink:
            stack.callback(sink.close)
            return sink

        if sinks is None:
            opened = [made(Console(steps=experiment.steps)), made(JSONL(folder / "metrics.jsonl"))]
            opened += [made(TensorBoard())] if importlib.util.find_spec("tensorboardX") is not None else []
        else:
            opened = [made(sink_named(sink)) if isinstance(sink, str) else sink for sink in sinks]
        for sink in opened:
            if isinstance(sink, OfRun):
                sink.begin(folder, experiment_json(experiment))
        yield opened


@contextmanager
def rarer_collections() -> Generator[None]:
    """Python's cycle collector walks all live episodes every few turns at its default; here it does so rarely."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
