"""Rubrics that change while a policy learns: their versions in a folder, and the model that writes the next one.

Meta Policy Optimization (arXiv 2504.20157) has a larger model rewrite the rubric every 10 or 20 updates from what was judged,
so that the policy cannot settle into what a fixed rubric overlooks. Here that is a workflow of its own, run between two
stretches of training; `docs/credit.md` shows the loop. Their pre-screening, analysis and merging of rubrics is one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.errors import UserError, WorkflowError
from agentrl.judge import Rubric

if TYPE_CHECKING:
    from agentrl.team import Team


class Rubrics:
    """The versions of a rubric in a folder, a file `rubric@3.json` each. The first is written if there is none."""

    def __init__(self, folder: str | Path, first: Rubric) -> None:
        self.folder, self._name = Path(folder), first.name
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._versions():
            self.add(first)

    def add(self, rubric: Rubric) -> None:
        """Keeps a new version. `UserError` for one that is not behind the latest, or of another name."""
        versions = self._versions()
        if rubric.name != self._name or (versions and rubric.version <= max(versions)):
            latest = f"{self._name}@{max(versions)}" if versions else self._name
            raise UserError(f"{self.folder} holds {latest}, got {rubric.reward}; a changed rubric has a greater version")
        (self.folder / f"{rubric.reward}.json").write_text(json.dumps(asdict(rubric), ensure_ascii=False, indent=1))

    def latest(self) -> Rubric:
        """The version to judge by now."""
        return self.of(max(self._versions()))

    def of(self, version: int) -> Rubric:
        """One version, such as the one that an episode's reward names."""
        file = self.folder / f"{self._name}@{version}.json"
        if not file.is_file():
            raise UserError(f"there is no {file.name} in {self.folder}; it holds the versions {sorted(self._versions())}")
        told: dict[str, Any] = json.loads(file.read_text())
        told["items"] = tuple(told["items"])
        return Rubric(**told)

    async def current(self, team: Team) -> Rubric:
        """The latest version, as an effect of the episode: a replay judges by the one that the record names."""
        return self.of(await team.effect(f"version of {self._name}", lambda: self.latest().version))

    def _versions(self) -> list[int]:
        return [int(file.stem.rpartition("@")[2]) for file in self.folder.glob(f"{self._name}@*.json")]


async def refine(team: Team, role: str, rubric: Rubric, judged: Sequence[str], *, tries: int = 2) -> Rubric:
    """The next version of a rubric, which the role `role` writes when it has read what was judged and how.

    `judged` are texts, each with a work, what the judge said of it, and what is known of its worth. `WorkflowError` if no
    rubric can be read in `tries` answers: then the old one stays.
    """
    if not judged:
        raise UserError(f"{rubric.reward} cannot be refined from nothing; give a few works with their verdicts")
    items = "\n".join(f"Item {number}: {item}" for number, item in enumerate(rubric.items, start=1))
    works = "\n\n".join(f"--- Work {number} ---\n{text}" for number, text in enumerate(judged, start=1))
    question = (
        f"A judge scores works by this rubric:\n\n{items}\n\nThese were judged by it:\n\n{works}\n\nSay where the scores are "
        "not what the works are worth: items that are too vague, that all works meet, or that can be met without merit. Then "
        "write the whole new rubric, a line `Item NUMBER: TEXT` for each item, numbered from 1."
    )
    said = ""
    for _ in range(tries):
        said = (await team[role].run(question)).text
        found = [(int(number), text.strip()) for number, text in _ITEM.findall(said)]
        if found and [number for number, _ in found] == list(range(1, len(found) + 1)) and all(text for _, text in found):
            return replace(rubric, items=tuple(text for _, text in found), version=rubric.version + 1)
    raise WorkflowError(
        f"agent {role} wrote no rubric behind {rubric.reward} that can be read in {tries} tries: wanted lines `Item 1: TEXT`, "
        f"`Item 2: TEXT`, got {said[-160:]!r}; give it more max_tokens or a clearer system prompt"
    )


_ITEM = re.compile(r"^[^\w\n]*item +(\d{1,4})[^\w\n]*?:[^\w\n]*(.*)$", re.IGNORECASE | re.MULTILINE)
