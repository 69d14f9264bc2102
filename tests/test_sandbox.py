"""The values of the sandboxes' contract: what limits and commands may be."""

from __future__ import annotations

from typing import Any

import pytest

from agentrl.errors import UserError
from agentrl.sandbox import RANGES, Command, SandboxLimits


def test_the_defaults_and_the_ends_of_every_range_are_limits() -> None:
    assert SandboxLimits() == SandboxLimits(512, 64, 60, 256, 64, 1 << 20, 30.0, "none")
    for name, ends in RANGES.items():
        for end in ends:
            assert getattr(SandboxLimits(**{name: end}), name) == end  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"memory_mb": 15}, "memory_mb must be 16 to 1.67772e+07, got 15"),
        ({"memory_mb": 10**14}, "got 100000000000000"),
        ({"processes": 1}, "processes must be 8 to 32768, got 1"),
        ({"output": 1}, "output must be 64 to"),
        ({"memory_mb": "1"}, "got '1'"),
        ({"disk_mb": True}, "got True"),
        ({"disk_mb": 1.5}, "got 1.5"),
        ({"timeout": float("nan")}, "got nan"),
        ({"timeout": 0}, "timeout must be 0.01 to"),
    ],
)
def test_limits_with_which_nothing_runs_are_refused(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        SandboxLimits(**limits)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "what", [{"argv": ""}, {"argv": ()}, {"argv": ("a", 5)}, {"argv": "a", "cwd": None}, {"argv": "a", "env": {"A": 1}}]
)
def test_a_command_is_made_of_strings(what: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="a command"):
        Command(**what)


def test_a_host_without_its_port_is_told_to_have_one() -> None:
    with pytest.raises(UserError, match=r"add the port: pypi\.org:443"):
        SandboxLimits(network=("pypi.org",))
