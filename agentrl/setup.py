"""From an experiment to what the loop needs, refusing before the first token what cannot run."""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from agentrl.config import experiment_json
from agentrl.credit import PassAtK
from agentrl.credit.contract import Estimator, Needs
from agentrl.credit.pvpo import REFERENCE_REWARDS
from agentrl.credit.values import CRITIC, VALUE, value_based
from agentrl.engines.specs import SGLang, own_renderer
from agentrl.errors import UserError
from agentrl.experiment import Experiment
from agentrl.learning.contract import Learner
from agentrl.learning.critic import Critic
from agentrl.learning.lora import LoRA
from agentrl.learning.vocabulary import check_same_vocabulary
from agentrl.metrics import JSONL, Console, OfRun, Sink, TensorBoard, sink_named
from agentrl.rollout.contract import FromDemonstrations, PlaysReference
from agentrl.runtime.demonstrations import Demonstrations
from agentrl.runtime.policies import model_folder
from agentrl.tasks import TaskSource, Uniform
from agentrl.transforms.tasks import of_task
from agentrl.workflow import task_as_json

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
    check_credit(experiment)
    check_reference(experiment)
    check_demonstrations(experiment)
    check_critic(experiment)
    check_objective(experiment)


def check_objective(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for a KL term against a reference policy that is not there, or that means other tokens by the same ids."""
    if not getattr(experiment.objective, "needs_reference", False):
        return
    method, reference = type(experiment.objective).__name__, experiment.reference
    if reference is None or not str(reference.model):
        what = "none" if reference is None else f"{reference.name!r} without a model"
        raise UserError(
            f"{method} has a KL term against a reference policy, and the experiment has {what}; --set reference=on "
            "--set reference.model=FOLDER, or --set objective.kl=0"
        )
    folder = model_folder(reference)
    if not folder.joinpath("config.json").is_file():
        raise UserError(f"reference {reference.name!r}: {folder} is no model folder (it has no config.json)")
    for policy in experiment.by_name.values():
        if not policy.frozen:
            check_same_vocabulary(model_folder(policy), folder)


def check_critic(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for a critic that could not learn, or of which nothing is asked."""
    if experiment.critic is None:
        return
    method = type(experiment.credit).__name__
    if value_based(experiment.credit) is None:
        raise UserError(f"{method} reads no values, so that a critic has nothing to learn; --credit gae, or --set critic=none")
    if VALUE in {probe.name for probe in experiment.probes}:
        raise UserError(f"both a critic and the probe {VALUE!r} give values; drop one")
    if CRITIC in experiment.by_name:
        raise UserError(f"a policy is called {CRITIC!r}, and so is the critic of a run; give the policy another name")
    folder = critic_folder(experiment)
    if not (folder / "config.json").is_file():
        raise UserError(f"critic: {folder} is no model folder (it has no config.json)")
    for policy in experiment.by_name.values():
        if not policy.frozen:
            try:
                check_same_vocabulary(model_folder(policy), folder)
            except UserError as error:
                raise UserError(
                    f"a critic reads the token ids of all policies that are trained, and {folder} has not the vocabulary of "
                    f"policy {policy.name!r}; Critic(model=FOLDER) with one that all of them have"
                ) from error


def critic_folder(experiment: Experiment[Any, Any]) -> Path:
    """What the critic starts from: a folder of its own, or that of the first policy that is trained."""
    assert experiment.critic is not None
    policy = next(policy for policy in experiment.by_name.values() if not policy.frozen)
    return model_folder(replace(policy, model=experiment.critic.model) if str(experiment.critic.model) else policy)


def check_credit(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for what the estimator needs, and nothing of the experiment records."""
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
    if not experiment.rollout.whole and not needs.stopped:
        method, plan = type(experiment.credit).__name__, type(experiment.rollout).__name__
        raise UserError(
            f"{plan} stops rollouts before their end, and {method} compares whole ones; --set rollout=independent, or an "
            "estimator for such plans: --credit at_grpo, --credit thor"
        )
    asked = {probe.name for probe in experiment.probes} | ({VALUE} if experiment.critic is not None else set[str]())
    unasked = [name for name in needs.probes if name not in asked]
    if VALUE in unasked:
        raise UserError(
            f"{type(experiment.credit).__name__} needs a value before each turn, and nothing gives one; --set critic=on, or "
            f"Experiment(..., critic=Critic()), trains a critic; or a probe of your own named {VALUE!r}"
        )
    if unasked:
        raise UserError(
            f"{type(experiment.credit).__name__} needs the probe {', '.join(map(repr, unasked))}, which nothing asks; "
            "Experiment(..., probes=(AnswerProbe(answer=function of the task),)) or a probe of this name of your own, "
            "--set probes=file.py:NAME"
        )
    if needs.reference_rewards and not (isinstance(experiment.rollout, PlaysReference) or _tasks_are_measured(experiment)):
        raise UserError(
            f"{type(experiment.credit).__name__} needs what a reference policy earned on each task, and nothing measures it; "
            f"--set rollout=referenced --set reference=on --set reference.model=FOLDER, or tasks with {REFERENCE_REWARDS}, a "
            "list of numbers"
        )
    if isinstance(experiment.credit, PassAtK) and experiment.credit.k >= experiment.rollout.size:
        k, size = experiment.credit.k, experiment.rollout.size
        raise UserError(
            f"PassAtK(k={k}) needs more than {k} episodes of a task, the rollout plan gives {size}; --set credit.k={size - 1}"
        )
    for base in _bases(experiment.credit):
        check_credit(replace(experiment, credit=base))


def check_reference(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for a plan with rollouts of a reference that cannot play, or that nothing is compared with."""
    plan, engine, reference = type(experiment.rollout).__name__, experiment.engine, experiment.reference
    if not isinstance(experiment.rollout, PlaysReference):
        return
    if not _needs_reference(experiment.credit):
        raise UserError(
            f"{plan} has rollouts of a reference, with which {type(experiment.credit).__name__} would compare the policy's as "
            "if they were its own; --credit pvpo, or --set rollout=independent"
        )
    if reference is None:
        raise UserError(
            f"{plan} has rollouts of a reference, and there is none; --set reference=on --set reference.model=FOLDER"
        )
    if engine.source == "demonstration" or own_renderer(engine, reference.name) is not None:
        raise UserError(
            f"the reference {reference.name!r} plays with token ids, which {type(engine).__name__} does not give for it; "
            "--set engine=local, or Several with an engine of its own"
        )
    if isinstance(engine, SGLang) and engine.adapters:
        raise UserError(
            f"a server of adapters has none for the reference {reference.name!r}; give it a server of its own: "
            f"Several({{{reference.name!r}: SGLang(URL)}}, rest=...)"
        )
    if not str(reference.model):
        raise UserError(f"the reference {reference.name!r} has no model; --set reference.model=FOLDER")
    if not (folder := model_folder(reference)).joinpath("config.json").is_file():
        raise UserError(f"reference {reference.name!r}: {folder} is no model folder (it has no config.json)")


def check_demonstrations(experiment: Experiment[Any, Any]) -> None:
    """`UserError` for a plan that begins inside demonstrations, and there are none of any task."""
    plan, tasks = experiment.rollout, experiment.tasks
    if not isinstance(plan, FromDemonstrations) or not plan.episodes:
        return
    known = Demonstrations(plan.episodes)
    if not isinstance(tasks, Sequence):
        tasks = ()
    if not len(known) or (len(tasks) and not any(known.of(task_as_json(task), plan.least) for task in tasks)):
        raise UserError(
            f"{plan.episodes} holds finished episodes of {len(known)} tasks, and none that {type(plan).__name__} can begin "
            "inside; give a run on the same tasks, --set rollout.episodes=RUN, or a lower rollout.least"
        )


def _needs_reference(estimator: Estimator) -> bool:
    return estimator.needs.reference_rewards or any(_needs_reference(base) for base in _bases(estimator))


def _tasks_are_measured(experiment: Experiment[Any, Any]) -> bool:
    """Whether tasks bring the rewards of a reference; of a source the first task is asked."""
    tasks: Any = experiment.tasks
    if not isinstance(tasks, Sequence):
        state = tasks.state()
        first = tasks.take(1)
        tasks.load(state)
        tasks = first
    return all(of_task(task, REFERENCE_REWARDS) for task in tasks)


def _bases(estimator: Estimator) -> Iterator[Estimator]:
    """The estimators that an estimator is made of: what they need, it needs."""
    if is_dataclass(estimator):
        values = (getattr(estimator, field.name) for field in fields(estimator))
        yield from (value for value in values if isinstance(getattr(value, "needs", None), Needs))


def open_learners(experiment: Experiment[Any, Any], lineage: str) -> dict[str, Learner]:
    """A learner for every policy that is not frozen, and the critic's."""
    try:
        from agentrl.learning.local import LocalLearner
    except ModuleNotFoundError as error:
        raise UserError(f'learning needs {error.name}; pip install "agentrl-runtime[local]"') from error
    anchor = experiment.reference if getattr(experiment.objective, "needs_reference", False) else None
    reference = None if anchor is None else model_folder(anchor)
    learners: dict[str, Learner] = {
        name: LocalLearner(
            name,
            model_folder(policy),
            experiment.objective,
            optimiser=policy.optimiser,
            lora=policy.lora if isinstance(policy.lora, LoRA) else None,
            reference=reference,
            microbatch_tokens=experiment.microbatch_tokens,
            threads=experiment.threads,
            lineage=lineage,
        )
        for name, policy in experiment.by_name.items()
        if not policy.frozen
    }
    if experiment.critic is not None:
        learners[CRITIC] = _open_critic(experiment, experiment.critic, lineage)
    return learners


def _open_critic(experiment: Experiment[Any, Any], critic: Critic, lineage: str) -> Learner:
    from agentrl.learning.values import ValueLearner

    return ValueLearner(
        critic_folder(experiment),
        critic,
        microbatch_tokens=experiment.microbatch_tokens,
        threads=experiment.threads,
        lineage=lineage,
    )


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
