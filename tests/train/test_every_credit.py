"""Every estimator trains by its short name: three batches of the bundled search workflow, as `agentrl train --credit NAME`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.cli import main
from agentrl.cli.arguments import experiment_of
from agentrl.credit import ESTIMATORS, assign
from agentrl.credit.compare import read_steps
from agentrl.credit.values import read_values, with_values
from agentrl.learning.replay import to_stored
from agentrl.learning.rows import to_rows
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter
from tests.train.small import small

HERE = f"{Path(__file__).resolve()}:questions"
ANSWER = "probes=agentrl_workflows.search_qa.experiment:ANSWER"
TREE = ("rollout=random_tree", "rollout.trees=2", "rollout.expand=1")

OPTIONS: Mapping[str, Sequence[str]] = {
    "adacot_masked": (),
    "arpo_agentic": ("rollout=entropy_tree", "rollout.size=4", "rollout.initial=2"),
    "at_grpo": ("rollout=candidates", "rollout.candidates=2", "rollout.turns=2"),
    "dr_grpo": (),
    "gae": ("critic=on",),
    "gigpo": (),
    "grpo": (),
    "gtpo_turn": (),
    "hrpo_mashost": (),
    "igpo": (ANSWER,),
    "passk": ("credit.k=2",),
    "pvpo": (
        "rollout=referenced",
        "rollout.plan.size=4",
        "rollout.samples=2",
        "reference=on",
        "reference.model={warm}",
    ),
    "reinforce_pp": (),
    "rloo": (),
    "salt": ("policies.temperature=0.3",),  # so that two episodes take a step alike
    "spo_chain": ("rollout=monte_carlo", "rollout.chains=1", "rollout.cuts=2", "rollout.continuations=2"),
    "spo_tree": ("rollout=fixed_tree", "rollout.branching=2,2", "rollout.segment=4"),
    "supo": (),
    "thor": ("credit.min_tokens=1", "rollout=backtrack", "rollout.rollouts=3", "rollout.retries=2", "rollout.opening=<search>"),
    "tree_grpo": TREE,
    "tree_opo": TREE,
    "treepo": ("rollout=segment_tree", "rollout.size=4", "rollout.segment=4"),
}
"""What each method needs beside its name, on four episodes of a question that say a dozen tokens each."""

FOUND = {
    "at_grpo": "credit/compared",
    "gigpo": "credit/anchored",
    "igpo": "credit/probed",
    "salt": "credit/merged",
    "tree_grpo": "credit/shared",
}
"""The metric that says how often a method met what it lives on."""


def questions() -> Any:
    """The target of the command lines below."""
    return small(Path("models/warm"), steps=3, eval_every=0, held_out=(), checkpoint_every=0)


def command(warm: Path, out: Path, name: str, settings: Sequence[str]) -> list[str]:
    given = [text.format(warm=warm) for text in ("policies.model={warm}", *settings)]
    return ["train", HERE, "--out", str(out), "--credit", name, *(part for text in given for part in ("--set", text))]


def test_the_table_has_every_estimator() -> None:
    assert OPTIONS.keys() == ESTIMATORS.keys()


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_it_learns_three_batches_from_its_own_credit_of_the_stored_episodes(name: str, warm: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(warm, out, name, OPTIONS[name])) == 0
    run = Run.find(out)
    experiment = experiment_of(run, None, [])
    assert type(experiment.credit) is ESTIMATORS[name]
    with run.store(read_only=True) as store:
        steps = read_steps(store, EpisodeFilter(split="train"), tokens=True)
        steps = [with_values(groups, read_values(store)) for groups in steps]
        stored = list(store.steps("searcher"))
    assert len(steps) == len(stored) == 3
    moved, metrics = 0, list[Mapping[str, float]]()
    for groups, step in zip(steps, stored, strict=True):
        batch, credit = assign(groups, experiment.credit, experiment.transforms, min_group=experiment.min_group)
        rows = to_stored(to_rows(batch, credit, "searcher"))
        assert rows == step.rows
        metrics.append(step.stats)
        moved += sum(bool(np.frombuffer(packed, "<f4").any()) for row in rows for packed in row.advantages)
    assert moved > 0, "all credit was 0"
    if name in FOUND:
        assert max(told[FOUND[name]] for told in metrics) > 0, "what the method compares by was not there"
    assert [step.before.step for step in stored] == sorted({step.before.step for step in stored}), "a batch was not learned"


FORKS = r"{} compares rollouts that branch, Independent gives none; --set rollout=random_tree"
ALONE = r"{} compares at least 2 episodes of a task, the rollout plan gives 1; --set rollout.size=2"

REFUSED: Sequence[tuple[str, Sequence[str], str]] = (
    *(
        (name, (), FORKS.format(ESTIMATORS[name].__name__))
        for name in ("arpo_agentic", "spo_chain", "spo_tree", "tree_grpo", "tree_opo", "treepo")
    ),
    *(
        (name, ("rollout.size=1",), ALONE.format(ESTIMATORS[name].__name__))
        for name in ("adacot_masked", "dr_grpo", "gigpo", "grpo", "gtpo_turn", "hrpo_mashost", "rloo", "salt", "supo", "thor")
    ),
    ("gae", (), r"GAE needs a value before each turn, and nothing gives one; --set critic=on"),
    ("pvpo", (), r"PVPO needs what a reference policy earned on each task, .*--set rollout=referenced --set reference=on"),
    ("pvpo", ("rollout=referenced",), r"Referenced has rollouts of a reference, and there is none; --set reference=on"),
    ("pvpo", ("rollout=referenced", "reference=on"), r"the reference 'reference' has no model; --set reference\.model=FOLDER"),
    ("igpo", (), r"IGPO needs the probe 'answer', which nothing asks; .*AnswerProbe\(.*--set probes=file\.py:NAME"),
    ("igpo", (ANSWER, "rollout.size=1"), ALONE.format("IGPO")),
    ("passk", ("rollout.size=1",), ALONE.format("PassAtK")),
    ("passk", (), r"PassAtK\(k=4\) needs more than 4 episodes of a task, the rollout plan gives 4; --set credit.k=3"),
    ("salt", ("credit.base=agentrl.credit:IGPO",), r"IGPO needs the probe 'answer', which nothing asks"),
    ("grpo", ("rollout=candidates",), r"Candidates stops rollouts before their end, and GRPO .*--credit at_grpo"),
    ("adacot_masked", ("credit.base=agentrl.credit:TreeGRPO",), FORKS.format("TreeGRPO")),
)
"""(method, what is set, what the message says of what is lacking and which option mends it)."""


@pytest.mark.parametrize(("name", "settings", "said"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_run_that_lacks_what_it_needs_is_refused_before_the_first_token(
    name: str, settings: Sequence[str], said: str, warm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(warm, out, name, settings)) != 0
    assert re.search(said, capsys.readouterr().err)
    assert not out.exists(), "nothing was sampled"


def test_whatever_a_method_needs_recorded_has_a_run_without_it_in_the_table() -> None:
    refused = {name for name, _, _ in REFUSED}
    for name, estimator in ESTIMATORS.items():
        needs = estimator.needs
        if needs.probes or needs.reference_rewards or needs.forks or needs.group > 1:
            assert name in refused, name
