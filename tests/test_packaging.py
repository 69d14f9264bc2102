"""The wheel holds everything that the tree does, and puts nothing unexpected into anyone's site-packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("agentrl_runtime-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    homes = {
        ROOT: "agentrl",
        ROOT / "tools": "agentrl_tools",
        ROOT / "sandboxes": "agentrl_sandboxes",
        ROOT / "workflows": "agentrl_workflows",
    }
    files = {
        str(path.relative_to(home))
        for home, package in homes.items()
        for path in (home / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files <= held
    assert {"agentrl/py.typed", "agentrl_workflows/search_qa/atlas.json", "agentrl_workflows/search_qa/NOTICE"} <= held
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == set(homes.values())
