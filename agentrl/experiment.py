"""The one value that train, eval, rollout, replay and serve take. A function of the user's returns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal

from agentrl.credit import GRPO
from agentrl.credit.contract import Estimator
from agentrl.engines.specs import EngineSpec, Local
from agentrl.errors import UserError
from agentrl.learning.critic import Critic
from agentrl.learning.lora import LoRA
from agentrl.learning.optimisers import AdamW, Optimiser
from agentrl.limits import Limits
from agentrl.objectives import Clipped
from agentrl.objectives.contract import Objective
from agentrl.probes.contract import Gauge, Probe
from agentrl.rollout import Independent, RolloutPlan
from agentrl.rollout.contract import PlaysReference
from agentrl.sandbox import SandboxSpec
from agentrl.tasks.contract import TaskSource
from agentrl.transforms.contract import RewardTransform
from agentrl.workflow import OutputT, TaskT, Workflow


@dataclass(frozen=True)
class Policy:
    """Named, versioned weights. `model` is the folder they start from, or the short name of a model (`docs/models.md`)."""

    name: str
    model: str | Path = ""
    frozen: bool = False
    optimiser: Optimiser = field(default_factory=AdamW)
    lora: int | LoRA | None = None
    """Train low-rank adapters (a number is their rank) beside frozen weights; None = train all weights."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    history: Literal["append", "faithful"] = "append"
    """Append-only contexts (thinking is kept), or what the chat template makes of the messages."""
    parser: str = ""
    """Tool-call format by name; empty = told by the model's own markers."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or "@" in self.name:
            raise UserError(f"a policy's name must be non-empty and have no '/' or '@', got {self.name!r}")
        if self.temperature < 0:
            raise UserError(f"policy {self.name}: temperature must be >= 0, got {self.temperature}")
        if isinstance(self.lora, int):
            object.__setattr__(self, "lora", LoRA(self.lora))


def reference_policy() -> Policy:
    """What `--set reference=on` stands for; `--set reference.model=FOLDER` says which."""
    return Policy("reference", frozen=True)


@dataclass(frozen=True)
class Experiment(Generic[TaskT, OutputT]):
    """What to run, on which tasks, what is good, and who learns from it how."""

    workflow: Workflow[TaskT, OutputT]
    policies: Policy | Mapping[str, Policy]
    """One policy that every role shares, or a policy for each role."""
    reward: Callable[[Any, Any, Any], Any] | None = None
    """`(task, output, episode) -> number`, or numbers by name; may be async."""
    tasks: TaskSource[TaskT] | Sequence[TaskT] = ()
    held_out: Sequence[TaskT] = ()
    rollout: RolloutPlan = field(default_factory=Independent)
    credit: Estimator = field(default_factory=GRPO)
    transforms: Sequence[RewardTransform] = ()
    """What is made of a group's rewards before credit is computed, one after the other."""
    probes: Sequence[Probe | Gauge] = ()
    """What is measured at the turns of every sampled episode when it has ended (`agentrl.probes`)."""
    reference: Policy | None = None
    """A frozen policy beside the others: what it earns is a baseline, what it would have said the anchor of a KL term."""
    critic: Critic | None = None
    """What learns the values that an estimator such as GAE reads (`docs/credit.md`)."""
    objective: Objective = field(default_factory=Clipped)
    engine: EngineSpec = field(default_factory=Local)
    sandbox: SandboxSpec | None = None
    """Where what a model wrote is run: `team.sandbox()`."""
    steps: int = 100
    tasks_per_step: int = 8
    max_staleness: int = 0
    """Learner steps by which the weights that sampled an episode may lag behind those that learn from it."""
    push_every: int = 1
    """New weights go to the engine every so many batches, and sooner where what it samples could no longer be trained."""
    seed: int = 0
    min_group: int = 2
    """A group of several that has fewer finished members than this is left out of its batch."""
    train_overlong: bool = False
    """Whether episodes that were cut off are trained; if not, they still count in the statistics of their group."""
    eval_every: int = 20
    eval_tasks: int | None = None
    """How many of `held_out`; None = all."""
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    threads: int = 1
    """Torch threads of engine and learner; part of what must be equal for equal bits."""
    microbatch_tokens: int = 8192
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("steps", "max_staleness", "eval_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("tasks_per_step", "threads", "min_group", "keep_checkpoints", "microbatch_tokens", "push_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.reference is not None and not self.reference.frozen:
            raise UserError(f"a reference is frozen, this one is not: Policy({self.reference.name!r}, ..., frozen=True)")
        given: Any = self.transforms
        if not isinstance(given, Sequence):
            raise UserError(f"transforms are several, got {given!r:.80}; write transforms=(..., ) even for one")
        if isinstance(self.policies, Mapping):
            lacking = sorted(self.workflow.agents.keys() - self.policies.keys())
            if lacking:
                raise UserError(f"agents without a policy: {', '.join(lacking)}; `policies` names {', '.join(self.policies)}")

    @property
    def by_role(self) -> dict[str, Policy]:
        """The policy of each role."""
        if isinstance(self.policies, Policy):
            return dict.fromkeys(self.workflow.agents, self.policies)
        return {role: self.policies[role] for role in self.workflow.agents}

    @property
    def by_reference(self) -> dict[str, Policy]:
        """The policy of each role where the reference plays every trained one."""
        reference = self.played_reference
        return {role: policy if policy.frozen else reference or policy for role, policy in self.by_role.items()}

    @property
    def played_reference(self) -> Policy | None:
        """The reference; it reads tool calls as the policies do that it plays, unless it names a parser of its own."""
        parsers = {policy.parser for policy in self.by_role.values() if not policy.frozen}
        if self.reference is None or self.reference.parser or len(parsers) != 1:
            return self.reference
        return replace(self.reference, parser=parsers.pop())

    @property
    def served(self) -> dict[str, Policy]:
        """What an engine serves, by name: `by_name`, and the reference if the rollout plan has it play."""
        reference = self.played_reference
        if reference is None or not isinstance(self.rollout, PlaysReference):
            return self.by_name
        if self.by_name.get(reference.name, reference) != reference:
            raise UserError(f"two different policies are called {reference.name!r}; give the reference another name")
        return {**self.by_name, reference.name: reference}

    @property
    def by_name(self) -> dict[str, Policy]:
        """The policies by name; one name is one set of weights."""
        named: dict[str, Policy] = {}
        for policy in self.by_role.values():
            if named.setdefault(policy.name, policy) != policy:
                raise UserError(
                    f"two different policies are called {policy.name!r}; shared weights need one value, others another name"
                )
        return named
