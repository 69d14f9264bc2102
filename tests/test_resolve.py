"""Names of files, packages, entry points and methods, resolved. `test_config.py` has what settings make of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from agentrl.credit import GiGPO
from agentrl.errors import UserError
from agentrl.resolve import SHARED_ACRONYMS, resolve


def test_a_file_of_a_package_has_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "shop" / "deep").mkdir(parents=True)
    for folder in ("shop", "shop/deep"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "shop" / "base.py").write_text("ONE = 1\n")
    (tmp_path / "shop" / "deep" / "leaf.py").write_text("from ..base import ONE\nclass Leaf: value = ONE\n")
    leaf = resolve(f"{tmp_path}/shop/deep/leaf.py:Leaf")
    assert (leaf.__module__, leaf.value) == ("shop.deep.leaf", 1)


def test_a_file_called_like_a_standard_module_does_not_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("json", "antigravity"):  # one that is imported already, one that is not
        (tmp_path / f"{name}.py").write_text("HERE = True\n")
        assert resolve(f"{tmp_path / name}.py:HERE") is True
    assert sys.modules["json"] is json
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("acronym", ["arpo", "dppo", "gepo", "hrpo", "gtpo", "spo", "srpo", "mpo", "ARPO"])
def test_an_acronym_of_two_papers_is_refused_with_both_names(acronym: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(acronym, table={"gigpo": GiGPO})
    assert all(name in str(caught.value) for name in SHARED_ACRONYMS[acronym.lower()])
    assert len(SHARED_ACRONYMS[acronym.lower()]) >= 2


def test_a_short_name_is_found_among_the_entry_points_of_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shelf.py").write_text("class Hammer: pass\n")
    info = tmp_path / "shelf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agentrl.tools]\nhammer = shelf:Hammer\nlost = shelf:Nail\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("hammer", group="agentrl.tools").__module__ == "shelf"
    with pytest.raises(UserError, match="did you mean hammer"):
        resolve("hammr", group="agentrl.tools")
    with pytest.raises(UserError, match=r"'lost' \(shelf:Nail\) cannot be imported"):
        resolve("lost", group="agentrl.tools")
    with pytest.raises(UserError, match="there is no 'hammer'"):
        resolve("hammer", group="agentrl.sandboxes")
