"""Settings by name, the resolver behind them, and an experiment told as JSON."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from agentrl.agent import Agent
from agentrl.config import apply_settings, difference, experiment_json, put_settings
from agentrl.config.values import CannotRead, read_value
from agentrl.credit import GRPO, GTPO, RLOO, SALT, Credit, DecisionMasked, GiGPO, Needs
from agentrl.engines.specs import Local, SGLang
from agentrl.errors import UserError
from agentrl.experiment import Experiment, Policy
from agentrl.learning.optimisers import AdamW, Muon
from agentrl.learning.schedules import Cosine
from agentrl.objectives import NLL, Clipped, Objective
from agentrl.resolve import resolve
from agentrl.rollout import Independent, RandomTree, RolloutPlan
from agentrl.sandbox import SandboxLimits
from agentrl.team import Team
from agentrl.transforms import OTC, BinaryAnswer, RewardTransform
from agentrl.workflow import workflow
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.process import Process

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools", ROOT / "workflows")))}


@dataclass(frozen=True)
class Question:
    text: str
    answer: str = ""


@workflow(Agent("coder"), Agent("tester", max_turns=3))
async def pair(task: Question, team: Team) -> str:
    return task.text


def reward(task: Question, output: str, episode: Any) -> float:
    return 1.0


def experiment(**changes: Any) -> Experiment[Any, Any]:
    base = Experiment(
        pair,
        policies=Policy("shared", model="/models/a"),
        reward=reward,
        tasks=(Question("a"), Question("b")),
        credit=GiGPO(),
    )
    return replace(base, **changes)


def two_policies() -> Experiment[Any, Any]:
    return experiment(policies={"coder": Policy("coder"), "tester": Policy("tester")})


# --- settings -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "read", "value"),
    [
        ("credit.gamma=0.9", lambda e: e.credit.gamma, 0.9),
        ("credit.std=sample", lambda e: e.credit.std, "sample"),
        ("credit.singleton=raw", lambda e: e.credit.singleton, "raw"),
        ("credit.singleton=0.5", lambda e: e.credit.singleton, 0.5),
        ("steps=10", lambda e: e.steps, 10),
        ("eval_tasks=none", lambda e: e.eval_tasks, None),
        ("eval_tasks=7", lambda e: e.eval_tasks, 7),
        ("rollout.size=4", lambda e: e.rollout, Independent(4)),
        ("engine.slots=8", lambda e: e.engine, Local(slots=8)),
        ("policies.model=/x", lambda e: e.policies.model, "/x"),
        ("policies.frozen=true", lambda e: e.policies.frozen, True),
        ("policies.optimiser.betas=(0.8, 0.99)", lambda e: e.policies.optimiser.betas, (0.8, 0.99)),
        ("limits.deadline=none", lambda e: e.limits.deadline, None),
        ("workflow.agents.tester.max_turns=6", lambda e: e.workflow.agents["tester"].max_turns, 6),
        ("policies.model=", lambda e: e.policies.model, ""),
        ("policies.model=a=b.c", lambda e: e.policies.model, "a=b.c"),
    ],
)
def test_a_setting_is_read_as_its_field_asks(setting: str, read: Any, value: Any) -> None:
    changed = read(apply_settings(experiment(), [setting]))
    assert changed == value
    assert type(changed) is type(value)


def test_a_setting_leaves_the_given_experiment_and_all_else_alone() -> None:
    before = experiment()
    after = apply_settings(before, ["credit.gamma=0.5"])
    assert before.credit.gamma == 0.95
    assert replace(after, credit=before.credit) == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("credit=grpo", GRPO()),
        ("objective=nll", NLL()),
        ("objective=clipped", Clipped()),
        ("engine=sglang", SGLang()),
        ("rollout=independent", Independent()),
        ("credit=agentrl.credit.grpo:GRPO", GRPO()),
        ("sandbox=process", Process()),
        ("sandbox=agentrl_sandboxes.docker:Docker", Docker()),
    ],
)
def test_a_plug_in_is_named_by_a_short_name_or_its_module(setting: str, value: Any) -> None:
    assert getattr(apply_settings(experiment(), [setting]), setting.partition("=")[0]) == value


def test_a_sandbox_by_name_takes_settings() -> None:
    changed = apply_settings(experiment(), ["sandbox=process", "sandbox.warm=3", "sandbox.limits.memory_mb=64"])
    assert changed.sandbox == Process(SandboxLimits(memory_mb=64), warm=3)


def test_a_plug_in_inside_another_takes_a_short_name_by_its_annotation() -> None:
    changed = apply_settings(experiment(), ["credit=salt", "credit.base=gtpo_turn", "credit.base.gamma=0.5"])
    assert changed.credit == SALT(base=GTPO(gamma=0.5))
    masked = apply_settings(experiment(), ["credit=adacot_masked", "credit.base=salt", "credit.base.base=rloo"])
    assert masked.credit == DecisionMasked(base=SALT(base=RLOO()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rlo", "credit.base=rlo: there is no 'rlo'; did you mean rloo"),
        ("gtpo", "credit.base=gtpo: 'gtpo' is the name of several methods; say which: gtpo_turn"),
        ("agentrl.objectives:NLL", "credit.base=agentrl.objectives:NLL: got .* which lacks"),
    ],
)
def test_what_is_no_plug_in_of_that_kind_is_refused_inside_another(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_settings(experiment(), ["credit=salt", f"credit.base={text}"])


@dataclass(frozen=True)
class Warmed:
    """A plan around a plan."""

    plan: RolloutPlan = field(default_factory=Independent)
    then: Objective | None = None
    shaped: Sequence[RewardTransform] = ()


def test_fields_of_other_names_are_read_by_what_they_hold() -> None:
    made = put_settings(Warmed(), ["plan=random_tree", "plan.trees=3", "then=nll", "shaped=otc,mgpo"])
    assert made == Warmed(RandomTree(trees=3), NLL(), (OTC(), BinaryAnswer()))
    assert put_settings(made, ["then=none"]).then is None


def test_settings_apply_in_order() -> None:
    changed = apply_settings(
        experiment(), ["credit=gigpo", "credit.gamma=0.9", "policies.optimiser=muon", "policies.optimiser.schedule.warmup=3"]
    )
    assert changed.credit == GiGPO(gamma=0.9)
    assert isinstance(changed.policies, Policy)
    assert isinstance(changed.policies.optimiser, Muon)
    assert changed.policies.optimiser.schedule.warmup == 3  # type: ignore[attr-defined]


def test_a_setting_of_all_policies_gives_way_to_one_of_a_single_policy() -> None:
    changed = apply_settings(two_policies(), ["policies.coder.model=/one", "policies.model=/all"])
    assert isinstance(changed.policies, Mapping)
    assert (changed.policies["coder"].model, changed.policies["tester"].model) == ("/one", "/all")


MISTAKES = [
    (["credit.gama=1"], "did you mean gamma"),
    (["creditt=gigpo"], "did you mean credit"),
    (["credit=gigppo"], "did you mean gigpo"),
    (["policies.codr.model=x"], "Policy has no field 'codr'"),
    (["steps=ten"], "got 'ten', expected a whole number"),
    (["steps=1.5"], "got '1.5', expected a whole number"),
    (["credit.gamma=nan"], "expected a number"),
    (["policies.frozen=maybe"], "expected true or false"),
    (["objective.ratio=word"], "expected token or turn or sequence"),
    (["policies.optimiser.betas=0.9"], "expected (a number, a number)"),
    (["steps"], "a setting is `name=value`"),
    (["credit..gamma=1"], "a setting is `name=value`"),
    (["steps=1", "steps=2"], "steps is set twice"),
    (["credit.gamma=0.9", "credit=grpo"], "credit.gamma=0.9 has no effect"),
    (["credit=grpo", "credit.omega=1"], "GRPO has no field 'omega'"),
    (["steps.x=1"], "steps is 100, which has no field 'x'"),
    (["rollout.size=0"], "rollout.size=0: a group needs at least one episode"),
    (["credit=arpo"], "Agentic Replay Policy Optimization"),
    (["policies.optimiser.schedule=cosine"], "Cosine needs steps"),
    (["credit=json:dumps"], "dumps needs obj"),
    (["credit=string:Formatter"], "which lacks __call__, needs"),
    (["limits.deadline=-1"], "limits.deadline must be > 0"),
    (["sandbox=proces"], "did you mean process"),
    (["sandbox=process", "sandbox.limits.memory_mb=0"], "memory_mb must be 16 to"),
    (["sandbox.warm=1"], "sandbox is None, which has no field 'warm'"),
    (["workflow.agents.tester.max_turn=6"], "did you mean max_turns"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES, ids=[" ".join(settings) for settings, _ in MISTAKES])
def test_a_setting_that_cannot_be_is_refused_with_what_there_is(settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_settings(experiment(), settings)
    assert message in str(caught.value)


def test_an_unknown_key_of_a_mapping_names_keys_and_fields() -> None:
    with pytest.raises(UserError, match=r"policies has no 'codr'; did you mean coder"):
        apply_settings(two_policies(), ["policies.codr.model=x"])


def test_a_setting_for_all_is_refused_when_each_has_its_own() -> None:
    with pytest.raises(UserError, match=r"policies\.model=/all has no effect"):
        apply_settings(two_policies(), ["policies.model=/all", "policies.coder.model=/1", "policies.tester.model=/2"])


def test_one_of_two_roles_that_share_weights_cannot_be_changed_alone() -> None:
    shared = Policy("both")
    with pytest.raises(UserError, match="two different policies are called 'both'"):
        apply_settings(experiment(policies={"coder": shared, "tester": shared}), ["policies.coder.top_k=5"])


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (tuple[int, ...], "1,2,3", (1, 2, 3)),
        (tuple[int, ...], "()", ()),
        (tuple[str, int], "[a, 2]", ("a", 2)),
        (list[float], "1, 2", [1.0, 2.0]),
        (Path, "/x/y", Path("/x/y")),
        (str | Path, "/x", "/x"),
        (str | Path, "~/x", Path.home() / "x"),
        (Path | None, "/x", Path("/x")),
        (Literal["a", 3], "3", 3),
        (int | float, "3", 3),
        (int | float, "3.5", 3.5),
        (float, "1e-4", 1e-4),
        (str | None, "None", None),
    ],
)
def test_text_becomes_the_value_an_annotation_asks_for(hint: Any, text: str, value: Any) -> None:
    read = read_value(hint, text, None)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("hint", "text"), [(tuple[int, int], "1"), (int, ""), (bool, "2"), (Literal["a"], "b"), (list[int], "1,x")]
)
def test_text_that_is_no_value_of_an_annotation_is_refused(hint: Any, text: str) -> None:
    with pytest.raises(CannotRead):
        read_value(hint, text, None)


# --- files -----------------------------------------------------------------------------------------------------------------
LAB = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from agentrl.credit import Batch, Credit, Needs, totals
from lab_neighbour import WEIGHT

@dataclass(frozen=True)
class Mine:
    gamma: float = WEIGHT
    needs: ClassVar[Needs] = Needs()
    def __call__(self, batch: Batch) -> Credit:
        return Credit(batch.turns, totals(batch.turns))

def questions():
    return ({"text": "x"},)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of a user's with a neighbour that it imports; forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lab_neighbour.py").write_text("WEIGHT = 0.25\n")
    (tmp_path / "lab.py").write_text(LAB)
    yield tmp_path / "lab.py"
    for name in ("lab", "lab_neighbour", "json_lab"):
        sys.modules.pop(name, None)


def test_an_estimator_in_a_file_takes_settings_like_ours(lab: Path) -> None:
    changed = apply_settings(experiment(), [f"credit={lab}:Mine", "credit.gamma=0.75"])
    assert type(changed.credit).__module__ == "lab"
    assert changed.credit == resolve(f"{lab}:Mine")(gamma=0.75)


def test_tasks_come_from_a_function_in_a_file(lab: Path) -> None:
    assert apply_settings(experiment(), [f"tasks={lab}:questions"]).tasks == ({"text": "x"},)


def test_a_file_is_imported_once_whatever_path_leads_to_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(f"{lab}:Mine")
    monkeypatch.chdir(lab.parent)
    assert resolve("lab.py:Mine") is first
    assert resolve("./lab.py:Mine") is first
    assert resolve("lab:Mine") is first


def test_a_value_from_a_file_unpickles_in_another_process(lab: Path) -> None:
    pickled = pickle.dumps(resolve(f"{lab}:Mine")(gamma=0.5))
    code = f"import pickle; from agentrl.resolve import resolve; resolve({f'{lab}:Mine'!r}); print(pickle.loads({pickled!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Mine(gamma=0.5)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lab.py:Mime", "did you mean Mine"),
        ("lab.py", "say which name in it"),
        ("lap.py:Mine", "did you mean lab.py"),
        ("nowhere.at.all:x", "there is no module 'nowhere'"),
        ("json:dumpz", "did you mean dump or dumps"),
        (":x", "names nothing"),
        ("broken.py:x", "broken.py:2 cannot be imported: ZeroDivisionError"),
        ("syntax.py:x", "syntax.py:1 cannot be imported: SyntaxError"),
        ("lacking.py:x", "lacking.py:1 cannot be imported: ModuleNotFoundError: No module named 'not_installed'"),
        ("gigp", "did you mean gigpo"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_what_comes_near(
    lab: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(lab.parent)
    Path("broken.py").write_text("x = 1\ny = 1 / 0\n")
    Path("syntax.py").write_text("def (:\n")
    Path("lacking.py").write_text("import not_installed\n")
    with pytest.raises(UserError) as caught:
        resolve(text, table={"gigpo": GiGPO, "grpo": GRPO})
    assert message in str(caught.value)


# --- as JSON ---------------------------------------------------------------------------------------------------------------
def test_an_experiment_as_json_tells_types_functions_and_tasks() -> None:
    told = experiment_json(experiment())
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["credit"]["type"] == "agentrl.credit.gigpo:GiGPO"
    assert told["credit"]["gamma"] == 0.95
    assert told["reward"] == f"{__name__}:reward"
    assert told["tasks"]["count"] == 2
    assert told["workflow"]["agents"]["tester"]["max_turns"] == 3
    assert told["workflow"]["code_hash"] == pair.code_hash


def test_the_json_is_the_same_in_another_process(lab: Path) -> None:
    (lab.parent / "json_lab.py").write_text(
        "from agentrl import Agent, Experiment, Policy, workflow\nfrom lab import Mine\nfrom pathlib import Path\n"
        "@workflow(Agent('a', tools=[]))\nasync def work(task, team): return ''\n"
        "def make(): return Experiment(work, policies=Policy('p', model=Path('/m')), tasks=({'x': 1},) * 3, credit=Mine())\n"
    )
    code = (
        "import json; from agentrl.resolve import resolve; from agentrl.config import experiment_json; "
        f"print(json.dumps(experiment_json(resolve({f'{lab.parent}/json_lab.py:make'!r})())))"
    )
    told = [json.loads(subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True)) for _ in range(2)]
    here = experiment_json(resolve(f"{lab.parent}/json_lab.py:make")())
    assert told[0] == told[1] == here
    assert difference(told[0], here) == []


def test_a_script_that_runs_itself_is_told_as_if_it_were_imported(lab: Path) -> None:
    script = lab.parent / "selfrun.py"
    script.write_text(
        "from agentrl import Agent, Experiment, Policy, workflow\nfrom agentrl.config import experiment_json\n"
        "@workflow(Agent('a'))\nasync def work(task, team): return ''\n"
        "def make(): return Experiment(work, policies=Policy('p'))\n"
        "if __name__ == '__main__': print(experiment_json(make())['workflow']['function'])\n"
    )
    assert subprocess.check_output([sys.executable, str(script)], env=ENVIRONMENT, text=True).strip() == "selfrun:work"


def test_a_difference_names_the_fields_that_differ() -> None:
    one = experiment_json(experiment())
    other = experiment_json(experiment(credit=GiGPO(gamma=0.5), steps=7, tasks=(Question("a"), Question("c"))))
    lines = difference(one, other)
    assert [line.partition(":")[0] for line in lines] == ["tasks.digest", "credit.gamma", "steps"]
    assert "credit.gamma: 0.95 -> 0.5" in lines


def test_a_difference_of_type_stands_for_its_fields() -> None:
    lines = difference(experiment_json(experiment()), experiment_json(experiment(credit=GRPO())))
    assert lines == ["credit: agentrl.credit.gigpo:GiGPO -> agentrl.credit.grpo:GRPO"]
    first, second = Policy("p"), Policy("p", optimiser=AdamW(schedule=Cosine(9)))
    lines = difference(experiment_json(experiment(policies=first)), experiment_json(experiment(policies=second)))
    assert lines == ["policies.optimiser.schedule: agentrl.learning.schedules:Constant -> agentrl.learning.schedules:Cosine"]


def test_an_object_is_told_without_its_address() -> None:
    class Scorer:
        def __init__(self) -> None:
            self.weight = 0.5
            self.cache = object()
            self._calls = 3

        def __call__(self, task: Any, output: Any, episode: Any) -> float:
            return self.weight

    told = experiment_json(experiment(reward=Scorer()))["reward"]
    assert told.keys() == {"type", "weight"}
    assert told["weight"] == 0.5


@dataclass(frozen=True)
class Odd:
    needs: ClassVar[Needs] = Needs()
    scale: float = float("inf")
    where: Path = Path("/x")
    names: frozenset[str] = frozenset({"b", "a"})

    def __call__(self, batch: Any) -> Credit:
        raise NotImplementedError


def test_what_json_has_no_word_for_is_told_as_text() -> None:
    told = experiment_json(experiment(credit=Odd()))["credit"]
    assert told == {"type": f"{__name__}:Odd", "scale": "inf", "where": "/x", "names": ["a", "b"]}
