"""The team of one running episode: the workflow's only handle on the world.

reply = await team["searcher"].run(question)         an agent's model-tool loop
score = await team.effect("grade", grade, patch)     anything else that touches the world
team.reward(0.3, name="gold document", turn=reply.turn)
"""

from __future__ import annotations

import inspect
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentrl.agent import Agent, AgentRun, Reply
from agentrl.box import Box, Sessions
from agentrl.effect import digest_request
from agentrl.engines.contract import Engine, GenerateRequest, Generation
from agentrl.episode import IntArray, Parent, Sampling, State, StopReason, Turn, digest_ids, token_ids
from agentrl.errors import RewardError, UserError
from agentrl.rendering.contract import Message, Rendered, Renderer
from agentrl.sandbox import SandboxLimits
from agentrl.tool import as_tools
from agentrl.workflow import Ask, Asked, Outcome, World


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a role's tokens come from: the policy that serves it, its engine and renderer, how it samples."""

    policy: str
    engine: Engine
    renderer: Renderer
    sampling: Sampling
    retries: int = 2
    takes_messages: bool = False
    """Its engine takes messages: ids are their bytes, and say nothing of its context."""
    columns: tuple[str, ...] = ()
    """Per-token columns that are recorded with each turn."""


class Team:
    """See the module. Made by the runtime, one per episode."""

    def __init__(
        self,
        world: World,
        agents: Mapping[str, Agent],
        seats: Mapping[str, Seat],
        thread: Callable[[Callable[[], Any]], Any],
        sandboxes: Sessions | None = None,
    ) -> None:
        self.world = world
        self._sandboxes = sandboxes
        self._boxes = 0
        self.thread = thread
        self._agents = agents
        self._seats = seats
        self._indices: dict[str, int] = {}
        self._samplings: dict[str, Sampling] = {}
        self._last: str | None = None

    def __getitem__(self, role: str) -> Role:
        if role not in self._agents:
            raise UserError(f"this team has no agent {role!r}; it has {', '.join(self._agents) or 'none'}")
        return Role(self, self._agents[role])

    def seat(self, role: str) -> Seat:
        """Where this role's tokens come from."""
        return self._seats[role]

    # --- the world -------------------------------------------------------------------------------------------------------
    async def effect(
        self, name: str, function: Callable[..., Any], /, *arguments: Any, outlives: bool = False, idempotent: bool = True
    ) -> Any:
        """Runs anything that touches the world, once; a replay hands back what it gave.

        `function` is async or sync (run in a thread); arguments and result are JSON (an argument that is not, such as a
        client, is told by its class alone). What it raises is raised here, live and on replay alike. `outlives` and
        `idempotent` as for a `Tool`.
        """
        said = _said(name, arguments)

        async def run(asked: Asked) -> Outcome:
            if inspect.iscoroutinefunction(function):
                given = await function(*arguments)
            else:
                given = await self.thread(lambda: function(*arguments))
                given = await given if inspect.isawaitable(given) else given
            try:
                return Outcome(_as_json(given))
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"effect {name!r} must give JSON (text, numbers, lists, dicts), got {type(given).__name__}"
                ) from error

        request = digest_request("effect", name, said.encode())
        ask = Ask("effect", name, request, said[:120], run, outlives=outlives, idempotent=idempotent)
        return _as_json((await self.world.perform(ask)).value)  # its own copy: what it does to it is not recorded

    def sandbox(self, limits: SandboxLimits | None = None) -> Box:
        """Where untrusted code runs: `async with team.sandbox() as box`. It ends with the block, or with the episode.

        `UserError` if the experiment has no sandbox.
        """
        if self._sandboxes is None:
            raise UserError("this team has no sandbox; run it by a Runtime, with Experiment(..., sandbox=Process())")
        if limits is not None and not isinstance(limits, SandboxLimits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UserError(f"team.sandbox(limits) takes SandboxLimits(...) from agentrl.sandbox, got {limits!r:.80}")
        self._boxes += 1
        return Box(self.world, self._sandboxes, f"box {self._boxes}", limits or self._sandboxes.limits)

    def reward(self, value: float, *, name: str = "reward", turn: Turn | None = None, agent: str | None = None) -> None:
        """Gives a reward: to a turn or, without one, at the end; to one agent or, without one, to the team."""
        if not math.isfinite(value):
            raise RewardError(f"a reward must be a finite number, got {name}={value!r}")
        if agent is not None and agent not in self._agents:
            raise UserError(f"reward for agent {agent!r}: this team has {', '.join(self._agents)}")
        self.world.record(
            "reward", name, {"name": name, "value": float(value), "turn": turn.id if turn else None, "agent": agent}
        )

    def metric(self, name: str, value: float) -> None:
        """Records a number of this episode; the run's metrics show its mean."""
        self.world.record("note", "metric", {"name": name, "value": float(value)})

    def random(self, name: str = "random") -> random.Random:
        """A generator seeded by this place in the workflow: the same on replay, another in a fork."""
        return random.Random(self.world.seed("random", name))

    def now(self) -> float:
        """Seconds since the episode began, by the clock of the record."""
        return self.world.now()

    # --- for the agents' loops -------------------------------------------------------------------------------------------
    def note_stop(self, agent: str, reason: StopReason) -> None:
        """Records why a model-tool loop ended."""
        self.world.record("note", "stop", {"agent": agent, "reason": reason})

    def note_invalid(self, turn: Turn) -> None:
        """Records that a turn does not follow its agent's format."""
        self.world.record("note", "valid", {"turn": turn.id})

    async def sample(
        self, agent: Agent, rendered: Rendered, prompt: IntArray, *, after: Sampled | None, max_tokens: int, state: str
    ) -> Sampled:
        """One model call. `prompt` is the whole path; `rendered` says which of it is new behind `after`."""
        seat = self._seats[agent.name]
        index = self._indices.get(agent.name, 0)
        self._indices[agent.name] = index + 1
        sampling = self._sampling(agent, seat, max_tokens)
        draft = _Draft(agent.name, index, rendered, after, self._last, state, sampling)

        async def run(asked: Asked) -> Outcome:
            request = GenerateRequest(
                id=f"{asked.episode}|{asked.id}",
                policy=seat.policy,
                parts=(prompt,),
                sampling=sampling,
                seed=asked.seed,
                forced=token_ids(asked.forced),
                session=asked.episode,
                columns=seat.columns,
            )
            generation = await seat.engine.generate(request)
            return Outcome(turn=draft.turn(seat, asked, prompt, generation), costs=generation.costs)

        async def abandon(asked: Asked) -> None:
            await seat.engine.abort(f"{asked.episode}|{asked.id}")

        what = [agent.name, seat.policy, sampling.temperature, sampling.top_k, sampling.top_p, max_tokens]
        request = digest_request(digest_ids(prompt), what)
        note = f"{agent.name} turn {index}, {len(prompt)} tokens"
        ask = Ask("model", agent.name, request, note, run, abandon, retries=seat.retries)
        turn = (await self.world.perform(ask)).turn
        assert turn is not None
        self._last = turn.id
        return Sampled(turn, np.concatenate((prompt, turn.sampled_ids)))

    def _sampling(self, agent: Agent, seat: Seat, max_tokens: int) -> Sampling:
        last = self._samplings.get(agent.name)
        if last is None or last.max_tokens != max_tokens:
            temperature = seat.sampling.temperature if agent.temperature is None else agent.temperature
            last = self._samplings[agent.name] = replace(seat.sampling, temperature=temperature, max_tokens=max_tokens)
        return last


def _said(name: str, arguments: tuple[Any, ...]) -> str:
    """Arguments as they are compared."""
    try:
        return json.dumps(
            arguments, sort_keys=True, separators=(",", ":"), default=lambda value: f"<{type(value).__qualname__}>"
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"the arguments of effect {name!r} must be JSON (text, numbers, lists, dicts): {error}") from error


def _as_json(value: Any) -> Any:
    """A value as it comes back from the record; a copy of its own."""
    return value if value is None or type(value) in (str, int, float, bool) else json.loads(json.dumps(value))


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A turn and its whole path, prompt and sample, as they were asked and given."""

    turn: Turn
    path: IntArray


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is known of a turn before it is sampled."""

    agent: str
    index: int
    rendered: Rendered
    after: Sampled | None
    predecessor: str | None
    state: str
    sampling: Sampling

    def turn(self, seat: Seat, asked: Asked, prompt: IntArray, generation: Generation) -> Turn:
        """The turn. Where the tokens are not what they should be it is kept, begins a context anew, and is never trained."""
        rendered, forced = self.rendered, len(asked.forced)
        parent, context, untrained = self._behind(prompt)
        if generation.text is not None:
            untrained = "its engine gives no token ids"
        elif generation.digest != digest_ids(prompt, generation.ids):
            untrained = "the engine saw other token ids than the record holds"
        return Turn(
            id=asked.id,
            agent=self.agent,
            index=self.index,
            policy=seat.policy,
            versions=generation.spans,
            parent=parent,
            predecessor=self.predecessor,
            branch=asked.branch,
            context_ids=context,
            sampled_ids=generation.ids,
            logprobs=generation.logprobs,
            logprobs_at=generation.logprobs_at,
            finish=generation.finish,
            sampling=self.sampling,
            seed=asked.seed,
            text=generation.text if generation.text is not None else seat.renderer.decode(generation.ids),
            digest=generation.digest,
            forced=min(forced, len(generation.ids)),
            segments=rendered.segments,
            tokenizer=seat.renderer.tokenizer_id,
            template=seat.renderer.template_id,
            state=State(before=self.state) if self.state else None,
            columns=generation.columns,
            started=asked.issued_at,
            ended=asked.clock(),
            cached_tokens=generation.cached_tokens,
            untrained=untrained,
        )

    def _behind(self, prompt: IntArray) -> tuple[Parent | None, IntArray, str]:
        """The parent, the ids added since, and what is wrong with them: the prompt is the kept path and the rendered ids."""
        kept = self.rendered.kept if self.after is not None else 0
        path = self.after.path if self.after is not None else prompt
        if np.array_equal(prompt[:kept], path[:kept]) and np.array_equal(prompt[kept:], self.rendered.ids):
            return (Parent(self.after.turn.id, kept) if self.after is not None else None), self.rendered.ids, ""
        return None, prompt, "the renderer's path is not that of the turn before"


class Role:
    """An agent of a running team."""

    def __init__(self, team: Team, agent: Agent) -> None:
        self._team = team
        self._agent = agent

    async def run(
        self, message: str | Sequence[Message], *, tools: Sequence[Any] | None = None, system: str | None = None
    ) -> Reply:
        """Runs the model-tool loop on a fresh context; gives its last turn.

        `tools` and `system` stand in for the agent's own in this run. Raises `EngineError` when the engine fails for good;
        every other end is a reply with its stop reason.
        """
        prompt = self._agent.system if system is None else system
        messages = [Message("user", message)] if isinstance(message, str) else list(message)
        if prompt:
            messages.insert(0, Message("system", prompt))
        toolbox = self._agent.toolbox if tools is None else as_tools(tools)
        return await AgentRun(self._team, self._agent, messages, toolbox).run()
