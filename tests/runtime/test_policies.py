"""What a policy's `model` may be: a folder, or the name of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl import Policy, UserError
from agentrl.runtime.policies import model_folder, models_of
from agentrl.setup import check
from agentrl_workflows.search_qa.experiment import search_qa
from agentrl_workflows.search_qa.model import make_model


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that offers the model `pocket`; gives the folder that it names."""
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agentrl.models]\npocket = shelf_of_models:pocket\n")
    model = make_model(tmp_path / "model", hidden=32, layers=1, heads=1, ff=32)
    (tmp_path / "shelf_of_models.py").write_text(f"def pocket():\n    return {str(model)!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return model


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert model_folder(Policy("p", model=tmp_path)) == tmp_path
    assert model_folder(Policy("p", model=str(tmp_path / "nowhere"))) == tmp_path / "nowhere"
    assert model_folder(Policy("p", model=Path("smollm2"))) == Path("smollm2")


def test_a_folder_beside_us_comes_before_a_name(named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()
    assert model_folder(Policy("p", model="pocket")) == Path("pocket")


def test_a_short_name_is_what_an_installed_package_offers(named: Path) -> None:
    assert model_folder(Policy("p", model="pocket")) == named
    assert model_folder(Policy("p", model="shelf_of_models:pocket")) == named
    experiment = search_qa("pocket")
    check(experiment)
    assert models_of(experiment, None) == {"searcher": named}


def test_an_unknown_name_is_refused_with_those_that_there_are(named: Path) -> None:
    with pytest.raises(UserError, match=r"'poket' is neither a model folder nor the name of a model.*did you mean pocket"):
        check(search_qa("poket"))


def test_a_name_of_no_function_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'agentrl.errors:__name__' is 'agentrl.errors', not a function that gives a model folder"
    ):
        model_folder(Policy("p", model="agentrl.errors:__name__"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model folder \(it has no config.json\)"):
        check(search_qa(tmp_path))
    with pytest.raises(UserError, match="has no model; "):
        check(search_qa(""))
