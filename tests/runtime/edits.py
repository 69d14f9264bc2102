"""Episodes to fork and edit: workflows over a scripted policy, a real store, real forks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentrl import Agent, Experiment, Policy, Runtime, Team, workflow
from agentrl.edit import Edit, Sheet
from agentrl.engines.scripted import Scripted
from agentrl.episode import Episode
from agentrl.errors import ToolError
from agentrl.evaluate import cut_after, differences
from agentrl.limits import Limits
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from tests.agents import Respond, call, renderer, script

STORY = script(
    call("search", query="first"),
    "So: " + call("search", query="second") + call("search", query="third"),
    "It is so.",
)
"""One call, then two at the same time, then an answer."""


class Desk:
    """What the workflows below touch, and how often."""

    def __init__(self) -> None:
        self.searched: list[str] = []
        self.graded: list[str] = []
        self.broken = False

    async def search(self, query: str) -> str:
        """Search."""
        self.searched.append(query)
        if self.broken:
            raise ToolError("the index is gone")
        return f"all of {query}\n"

    def grade(self, text: str) -> dict[str, Any]:
        self.graded.append(text)
        return {"score": len(self.graded)}


def asking(desk: Desk) -> Experiment[Any, Any]:
    """An agent that searches; its answer is graded twice, and the second grade knows of the first."""

    @workflow(Agent("searcher", tools=[desk.search]), name="asking")
    async def ask(task: str, team: Team) -> str:
        reply = await team["searcher"].run(task)
        first = await team.effect("grade", desk.grade, reply.text)
        team.reward(first["score"], name="first")
        second = await team.effect("grade again", desk.grade, f"{reply.text} {first['score']}")
        return f"{reply.text} {first['score']} {second['score']}"

    return Experiment(ask, policies=Policy("policy"), limits=Limits(grace=1.0))


class Place:
    """A store with the experiment that fills it."""

    def __init__(self, experiment: Experiment[Any, Any], store: SQLiteStore, runtime: Runtime[Any, Any]) -> None:
        self.experiment = experiment
        self.store = store
        self.runtime = runtime

    async def run(self, task: str = "Go.", **more: Any) -> Episode:
        """An episode, stored."""
        episode = await self.runtime.run(task, **more)
        await self.store.flush()
        return episode

    def sheet(self, episode: Episode, number: int) -> Sheet:
        """What may be changed of a stored episode."""
        stored, journal = self.store.episode(episode.id), self.store.journal(episode.id)
        agents = self.experiment.workflow.agents
        return Sheet(stored, journal, number, cut_after(journal, stored, number), renderer(), agents)

    async def fork(self, of: Episode, edit: Edit) -> Episode:
        """Goes on live from an edit; then the fork must read, and replay, as it was."""
        group = f"{of.group}+fork"
        member = sum(1 for _ in self.store.heads(EpisodeFilter(group=group)))
        before = self.store.journal(of.id)
        forked = await self.runtime.fork(of.task, of, edit.cut, group=group, member=member, edited=edit.effects)
        await self.store.flush()
        assert [e.completed for e in self.store.journal(of.id)] == [e.completed for e in before], "the original is untouched"
        await self.check(forked)
        return forked

    async def check(self, forked: Episode) -> None:
        """The stored fork is the one that ran, and replays to it."""
        stored = self.store.episode(forked.id)
        assert differences(stored, forked) == []
        (head,) = self.store.heads(EpisodeFilter(ids=(forked.id,)))
        again = await self.runtime.replay(head, self.store.journal(forked.id), self.store.tail(forked.id), forked.task)
        assert differences(stored, again) == []


@asynccontextmanager
async def place(path: Path, experiment: Experiment[Any, Any], respond: Respond = STORY) -> AsyncIterator[Place]:
    """An open store and runtime."""
    engine = Scripted(respond, renderer=renderer())
    with SQLiteStore(path / "store.db") as store:
        async with Runtime(experiment, store=store, engine=engine, renderers={"policy": renderer()}) as runtime:
            yield Place(experiment, store, runtime)


def changed(sheet: Sheet, changes: Mapping[str, str]) -> str:
    """The document with other texts in some of its sections."""
    head, *parts = sheet.text.split("\n>>>> ")
    document = [head]
    for part in parts:
        title, _, _ = part.partition(":")
        line, _, body = part.partition("\n")
        document.append(f"{line}\n{changes[title]}\n" if title in changes else f"{line}\n{body}")
    assert set(changes) <= {part.partition(":")[0] for part in parts}
    return "\n>>>> ".join(document)
