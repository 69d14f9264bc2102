"""`agentrl credit`: over stored episodes, without sampling."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.cli import main
from agentrl.credit import ESTIMATORS, GRPO, GTPO, GiGPO, assign
from agentrl.credit.compare import compare, read_recorded, read_steps
from agentrl.episode import Reward
from agentrl.errors import UserError
from agentrl.resolve import load_file
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore

ROOT = Path(__file__).resolve().parents[1]
README_ESTIMATOR = (ROOT / "README.md").read_text().split("# mylab.py")[1].split("```")[0].split("\n", 1)[1]


def maker() -> Any:
    """The benchmark's stores, which are what a run leaves."""
    return load_file(ROOT / "benchmarks" / "credit.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: 160 episodes of three batches that were trained with GRPO; and a file of one's own beside it."""
    place = tmp_path_factory.mktemp("place")
    maker().make_store(place / "run" / "store.db", 160)
    described = {"target": "x.py:x", "settings": [], "lineage": "l", "experiment": {"min_group": 2, "transforms": []}}
    (place / "run" / "experiment.json").write_text(json.dumps(described))
    (place / "mylab.py").write_text(README_ESTIMATOR)
    return place


Command = Callable[..., str]


@pytest.fixture
def credit(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`agentrl credit run ARGUMENTS` in this process; gives what it printed, on standard error if it failed."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")

    def command(*arguments: str, run: str = "run", code: int = 0) -> str:
        assert main(["credit", run, *arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    yield command
    for name in ("mylab", "bad"):
        sys.modules.pop(name, None)


def test_it_shows_where_two_estimators_differ(credit: Command, folder: Path) -> None:
    printed = credit("--with", "gtpo_turn", "--against", "gigpo", "-n", "3")
    assert "160 episodes in 20 groups of 3 batches" in printed and "turns that differ most: 3" in printed
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        steps = [list(groups) for groups in read_steps(store, EpisodeFilter(split="train"), tokens=True)]
    a, b = (np.concatenate([assign(groups, each)[1].advantage for groups in steps]) for each in (GTPO(), GiGPO()))
    largest = float(np.abs(a - b).max())
    shown = [line for line in printed.splitlines() if line.startswith("  searcher")]
    assert len(shown) == 3
    assert max(abs(float(line.split()[5])) for line in shown) == pytest.approx(largest, abs=6e-4)
    assert f"correlation {np.corrcoef(a, b)[0, 1]:.3f}" in printed
    assert f"opposite on {np.mean(a * b < 0):.1%}" in printed
    for name, column in (("with", a), ("against", b)):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert line.split()[1:4] == [f"{column.mean():.4f}", f"{column.std():.4f}", f"{np.mean(column == 0):.1%}"]


def test_every_estimator_of_ours_runs_by_its_short_name(credit: Command) -> None:
    for name, kind in ESTIMATORS.items():
        needs = kind.needs
        if needs.forks or needs.probes or needs.reference_rewards:
            assert kind.__name__ in credit("--with", name, code=1)
        else:
            assert "160 episodes" in credit("--with", name, "-n", "1")


def test_without_against_it_is_what_the_run_was_trained_with(credit: Command) -> None:
    printed = credit("--with", "grpo")
    assert "against" in printed and "as recorded when the run was trained" in printed
    assert "correlation 1.000; the sign differs on 0.0%" in printed
    assert credit("--with", "grpo", "--against", "recorded").splitlines()[1:] == printed.splitlines()[1:]


def test_the_readmes_estimator_stands_against_gigpo(credit: Command) -> None:
    printed = credit("--with", "mylab.py:RoleCentred", "--against", "gigpo", "--set", "with.gamma=0.9")
    assert "RoleCentred(gamma=0.9)" in printed and "GiGPO(gamma=0.95" in printed and "correlation" in printed


def test_settings_reach_one_side_or_both(credit: Command) -> None:
    printed = credit("--with", "gtpo_turn", "--against", "gtpo_turn", "--set", "gamma=0.5", "--set", "against.over=group")
    assert "GTPO(gamma=0.5, over='index'" in printed and "GTPO(gamma=0.5, over='group'" in printed


def test_transforms_come_before(credit: Command) -> None:
    plain = credit("--with", "grpo", "--against", "gigpo")
    shaped = credit(
        "--with", "grpo", "--against", "gigpo", "--transforms", "code_similarity", "--set", "transforms.0.alpha=0.4"
    )
    assert plain.splitlines()[3] != shaped.splitlines()[3]


def test_full_shows_all_turns_of_an_episode_and_whole_texts(credit: Command) -> None:
    short = credit("--with", "gtpo_turn", "--against", "gigpo", "-n", "1")
    full = credit("--with", "gtpo_turn", "--against", "gigpo", "-n", "1", "--full")
    assert "</search>" not in short and "</search>" in full
    assert sum(line.startswith("  searcher") for line in full.splitlines()) > 1


def test_a_step_and_a_split_limit_it(credit: Command) -> None:
    assert "64 episodes in 8 groups of 1 batches" in credit("--with", "grpo", "--step", "1")
    assert "has no finished episode of split 'eval'; it has train" in credit("--with", "grpo", "--split", "eval", code=1)
    assert "of split 'train' and step 9" in credit("--with", "grpo", "--step", "9", code=1)


def test_what_a_model_wrote_cannot_act_on_the_terminal(credit: Command, folder: Path, tmp_path: Path) -> None:
    module = maker()
    with SQLiteStore(tmp_path / "store.db") as store:
        for n in range(2):
            store.begin(EpisodeHead(f"e{n}", "g", n, 2, None, 0, ""))
            effects = list(module.make_effects(2, np.random.default_rng(0)))
            effects[0] = replace(effects[0], turn=replace(effects[0].turn, text="\x1b[2Jgone\r\nhere"))
            store.append(f"e{n}", effects)
            store.finish(f"e{n}", EpisodeTail("done", rewards=(Reward("r", float(n)),)))
    for options in ((), ("--full",)):
        printed = credit("--with", "grpo", *options, run=str(tmp_path / "store.db"))
        assert "\x1b" not in printed and "\\x1b[2Jgone" in printed


BAD = """
import numpy as np
from dataclasses import dataclass
from agentrl.credit import Credit, Needs
@dataclass(frozen=True)
class Base:
    needs = Needs()
    def __call__(self, batch):
        return self.give(batch)
class Nan(Base):
    def give(self, batch):
        return Credit(batch.turns, np.where(batch.turns.index == 1, np.nan, 0.0))
class Short(Base):
    def give(self, batch):
        return Credit(batch.turns, np.zeros(len(batch.groups)))
class Raises(Base):
    def give(self, batch):
        return batch.nothing
class Probed(Base):
    needs = Needs(probes=("truth",))
class Reversed:
    def __call__(self, group):
        from dataclasses import replace
        return replace(group, episodes=group.episodes[::-1])
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--with", "bad.py:Nan"), "estimator Nan gave advantage nan for turn 1 of agent searcher (:2) in episode s000000"),
        (("--with", "bad.py:Short"), "estimator Short gave advantage of shape (8,), wanted ("),
        (("--with", "bad.py:Raises"), "bad.py:18: AttributeError: 'Batch' object has no attribute 'nothing'"),
        (("--with", "grpo", "--against", "bad.py:Short"), "estimator Short gave advantage of shape"),
        (("--with", "bad.py:Probed"), "Probed needs probe 'truth', which these episodes lack"),
        (("--with", "grpo", "--transforms", "bad.py:Reversed"), "transform Reversed: group s000000.000 came back with other"),
        (("--with", "gtpo"), "'gtpo' is the name of several methods; say which: gtpo_turn"),
        (("--with", "grop"), "there is no 'grop'; did you mean grpo"),
        (("--with", "agentrl.credit:Credit"), "cannot be made from its name alone"),
        (("--with", "agentrl.errors:capture"), "lacks __call__, needs"),
        (("--with", "grpo", "--set", "with.gamma=1"), "GRPO has no field 'gamma'"),
        (("--with", "grpo", "--set", "wiht.std=none"), "there is no 'wiht'"),
        (("--with", "grpo", "--against", "gigpo", "--transforms", "nowhere"), "there is no 'nowhere'; there is adacot"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_line(credit: Command, folder: Path, options: tuple[str, ...], said: str) -> None:
    (folder / "bad.py").write_text(BAD)
    printed = credit(*options, code=1)
    assert said in printed and printed.count("\n") == 1, printed


def test_a_run_without_learner_steps_has_nothing_recorded(credit: Command, tmp_path: Path) -> None:
    module = maker()
    with SQLiteStore(tmp_path / "store.db") as store:
        for n in range(2):
            store.begin(EpisodeHead(f"e{n}", "g", n, 2, None, 0, ""))
            store.append(f"e{n}", list(module.make_effects(2, np.random.default_rng(0))))
            store.finish(f"e{n}", EpisodeTail("done", rewards=(Reward("r", float(n)),)))
    run = str(tmp_path / "store.db")
    assert "no committed learner step" in credit("--with", "grpo", "--against", "recorded", run=run, code=1)
    assert "largest: 4" in credit("--with", "grpo", run=run)


def test_nothing_to_read_is_said(credit: Command, tmp_path: Path) -> None:
    assert "there is no store at" in credit("--with", "grpo", run=str(tmp_path), code=1)


def test_a_run_trained_with_transforms_says_so_when_none_are_given(credit: Command, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "store.db").write_bytes((folder / "run" / "store.db").read_bytes())
    described = {"experiment": {"min_group": 2, "transforms": [{"type": "agentrl.transforms.similarity:CodeSimilarity"}]}}
    (run / "experiment.json").write_text(json.dumps(described))
    assert "trained with transforms (agentrl.transforms.similarity:CodeSimilarity)" in credit("--with", "grpo", run=str(run))
    assert "trained with" not in credit("--with", "grpo", "--against", "gigpo", "--transforms", "code_similarity", run=str(run))


def test_neither_torch_nor_an_engine_is_loaded(folder: Path) -> None:
    code = (
        "import sys; from agentrl.cli import main; "
        "assert main(['credit', 'run', '--with', 'mylab.py:RoleCentred', '--against', 'gigpo']) == 0; "
        "print([m for m in ('torch', 'transformers', 'agentrl.runtime', 'agentrl.experiment') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# --- what it is made of ---------------------------------------------------------------------------------------------------
def test_credit_without_tokens_is_the_credit_with_them_to_the_bit(folder: Path) -> None:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        lean, whole = (read_steps(store, EpisodeFilter(), tokens=tokens) for tokens in (False, True))
    for estimator in (GRPO(), GiGPO(), GTPO()):
        for a, b in zip(lean, whole, strict=True):
            (one, credit), (other, expected) = assign(a, estimator), assign(b, estimator)
            assert np.asarray(credit.advantage).tobytes() == np.asarray(expected.advantage).tobytes()
            assert one.turns.length.tolist() == other.turns.length.tolist()


def test_recorded_is_what_training_computed_and_tokens_of_a_turn_are_averaged(folder: Path) -> None:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        steps, recorded = read_steps(store, EpisodeFilter(), tokens=True), read_recorded(store)
        assert read_recorded(store, step=1).keys() < recorded.keys()
    found = compare(steps, GRPO(), recorded)
    assert found.second is not None
    np.testing.assert_allclose(found.first, found.second, atol=1e-6)
    key = (found.episodes[0].id, found.turns[0].id)
    tokens = np.arange(48, dtype="<f4")
    again = compare(steps, GRPO(), {key: tokens.tobytes()})
    assert again.second is not None
    assert again.second[0] == tokens.mean() and np.isnan(again.second[1:]).all()
    assert again.largest(5) == [0]


def test_an_estimator_that_compares_too_few_is_refused(folder: Path) -> None:
    with SQLiteStore(folder / "run" / "store.db", read_only=True) as store:
        steps = read_steps(store, EpisodeFilter(ids=("s000000.000.0",)))
    with pytest.raises(UserError, match=r"GRPO needs groups of 2 \(the largest has 1 finished\)"):
        compare(steps, GRPO())
