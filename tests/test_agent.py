"""The model-tool loop: what it records, and every reason for which it stops."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentrl.agent import Agent
from agentrl.engines.contract import EngineInfo, GenerateRequest, Generation, Offers
from agentrl.engines.mock import Mock
from agentrl.engines.scripted import Scripted
from agentrl.episode import IntArray, digest_ids
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.rendering.contract import Conversation, Parsed
from agentrl.rendering.template import TemplateRenderer
from agentrl.store.fold import fold
from agentrl.team import Team
from tests.agents import ask, call, renderer, script, seat
from tests.runtime.harness import HEAD, play


async def lookup(key: str) -> str:
    """Look `key` up."""
    return f"value of {key}"


async def test_an_answer_without_tools_is_one_turn() -> None:
    played = await ask(script("Hello."))
    assert (played.stop, played.tail.output) == ("answered", "Hello.")
    (turn,) = played.episode.turns
    assert (turn.agent, turn.index, turn.parent, turn.finish) == ("agent", 0, None, "stop")


async def test_a_tool_call_is_answered_and_recorded_with_its_turn() -> None:
    played = await ask(script(call("lookup", key="x"), "It is the value of x."), tools=[lookup])
    first, second = played.episode.turns
    (made,) = first.tool_calls
    assert (made.name, made.arguments, made.status, made.output) == ("lookup", {"key": "x"}, "ok", "value of x")
    assert (played.stop, played.tail.output) == ("answered", "It is the value of x.")
    assert second.parent is not None
    assert second.parent.turn == first.id
    assert second.predecessor == first.id


async def test_a_path_is_what_the_engine_saw_and_grows_by_what_is_new_only() -> None:
    played = await ask(script(call("lookup", key="x"), "Done."), tools=[lookup])
    episode = played.episode
    for turn in episode.turns:
        assert digest_ids(episode.path(turn)) == turn.digest
    first, second = episode.turns
    assert second.parent is not None
    assert second.parent.kept == episode.path_length(first)
    assert "value of x" in renderer().decode(second.context_ids)
    assert "Go." not in renderer().decode(second.context_ids)


async def test_turn_limit() -> None:
    played = await ask(lambda prompt, rng: call("lookup", key=str(prompt.count("value"))), tools=[lookup], max_turns=3)
    assert (played.stop, len(played.episode.turns)) == ("turn_limit", 3)


async def test_token_limit_of_a_turn() -> None:
    played = await ask(script("word " * 50), max_tokens=8)
    assert (played.stop, played.episode.turns[0].finish, len(played.episode.turns[0].sampled_ids)) == (
        "token_limit",
        "length",
        8,
    )


async def test_token_limit_of_a_run() -> None:
    played = await ask(
        lambda prompt, rng: call("lookup", key=str(prompt.count("value"))), tools=[lookup], max_total_tokens=100, max_turns=50
    )
    assert played.stop == "token_limit"
    assert 0 < played.episode.ledger.sampled_tokens <= 100


async def test_context_overflow_ends_the_run_and_marks_the_episode_overlong() -> None:
    played = await ask(
        lambda prompt, rng: call("lookup", key=str(prompt.count("value"))), tools=[lookup], max_context=700, max_turns=50
    )
    assert (played.stop, played.tail.status) == ("context_overflow", "overlong")
    assert len(played.episode.turns) >= 1


async def test_tool_limit() -> None:
    played = await ask(
        lambda prompt, rng: call("lookup", key=str(prompt.count("value"))), tools=[lookup], max_tool_calls=2, max_turns=9
    )
    assert (played.stop, played.episode.ledger.tool_calls) == ("tool_limit", 2)


async def test_a_call_that_cannot_be_read_is_told_to_the_model_and_its_turn_is_invalid() -> None:
    played = await ask(script("<tool_call>\n{not json\n</tool_call>", "Sorry."), tools=[lookup])
    assert (played.stop, played.tail.output) == ("answered", "Sorry.")
    first, second = played.episode.turns
    assert (first.valid, second.valid) == (False, True)
    assert first.tool_calls[0].status == "bad_arguments"


class Unreadable(TemplateRenderer):
    """Reads no reply."""

    def sampled(self, conversation: Conversation, ids: IntArray) -> Parsed:
        return replace(super().sampled(conversation, ids), error="it is unreadable")


async def test_parse_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renderer(), "__class__", Unreadable)
    played = await ask(script("Hm."))
    assert (played.stop, played.episode.turns[0].valid) == ("parse_error", False)


async def test_no_progress() -> None:
    played = await ask(script(call("lookup", key="x")), tools=[lookup], max_turns=9, no_progress=3)
    assert (played.stop, len(played.episode.turns)) == ("no_progress", 3)


async def test_no_progress_can_be_switched_off() -> None:
    played = await ask(script(call("lookup", key="x")), tools=[lookup], max_turns=6, no_progress=0)
    assert (played.stop, len(played.episode.turns)) == ("turn_limit", 6)


async def test_deadline_of_an_agent_inside_its_episode() -> None:
    async def slow(key: str) -> str:
        """Takes its time."""
        await asyncio.sleep(30)
        return key

    played = await ask(script(call("slow", key="x")), tools=[slow], timeout=0.02)
    assert (played.stop, played.tail.status) == ("deadline", "done")
    assert played.reply is not None
    assert played.reply.turn is not None


class Failing:
    """An engine that fails `times` times, then is like another."""

    def __init__(self, inner: Scripted, error: Exception, times: int = 10**9) -> None:
        self.inner, self.error, self.times = inner, error, times

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("failing", 1 << 20, 1 << 20, Offers())

    async def generate(self, request: GenerateRequest) -> Generation:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return await self.inner.generate(request)


def scripted(*replies: str) -> Scripted:
    return Scripted(script(*replies), renderer=renderer())


async def test_engine_failure_is_the_engines_fault() -> None:
    played = await ask(script(), engine=Failing(scripted("Hi."), EngineError("no connection")))
    assert (played.stop, played.tail.status) == ("engine_failure", "failed")
    assert played.tail.failure is not None
    assert (played.tail.failure.fault, played.tail.failure.message) == ("engine", "EngineError: no connection")


async def test_an_engine_failure_that_passes_is_tried_again_with_the_same_seed() -> None:
    played = await ask(script(), engine=Failing(scripted("Hi."), EngineError("busy", retryable=True), times=1), retries=2)
    assert (played.stop, played.tail.output) == ("answered", "Hi.")
    assert [effect.status for effect in played.effects if effect.kind == "model"] == ["lost", "ok"]


async def test_an_engine_that_says_the_context_overflows_ends_the_run_as_one() -> None:
    played = await ask(script(), engine=Failing(scripted("Hi."), ContextOverflow("700 of 512 tokens")))
    assert (played.stop, played.tail.status) == ("context_overflow", "overlong")


async def test_a_timeout_of_the_engine_is_not_the_agents_deadline() -> None:
    played = await ask(script(), engine=Failing(scripted("Hi."), TimeoutError("no answer")), timeout=30)
    assert (played.tail.status, played.tail.failure and played.tail.failure.message) == ("failed", "TimeoutError: no answer")


async def test_what_cancelled_losers_sampled_is_in_the_ledger() -> None:
    engine = Mock(lambda rng: 0.2, lambda rng: 64, vocab_size=400)
    agents = {"agent": Agent("agent", max_tokens=64)}

    async def workflow(task: Any, team: Team) -> str:
        try:
            async with asyncio.timeout(0.05):
                await team["agent"].run("Go.")
        except TimeoutError:
            return "timeout"
        return "?"

    async with engine:
        effects, tail = await play(workflow, agents=agents, seats={"agent": seat(engine)})
    assert tail.output == "timeout"
    (lost,) = [effect for effect in effects if effect.kind == "model"]
    assert lost.status == "lost"
    assert lost.turn is not None
    assert tail.ledger.lost_tokens == len(lost.turn.sampled_ids) > 0
    assert fold(HEAD, effects, tail).turns == ()


async def test_several_calls_of_one_turn_overlap_and_keep_their_order() -> None:
    running, most = 0, 0
    together = asyncio.Event()

    async def meet(n: int) -> str:
        """Waits for the others."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            together.set()
        await asyncio.wait_for(together.wait(), 5)
        running -= 1
        return f"{n}"

    reply = "\n".join(call("meet", n=n) for n in range(3))
    played = await ask(script(reply, "Done."), tools=[meet])
    assert most == 3
    assert played.reply is not None
    assert [message.content for message in played.reply.messages if message.role == "tool"] == ["0", "1", "2"]
    assert [made.arguments["n"] for made in played.episode.turns[0].tool_calls] == [0, 1, 2]


async def test_agents_beside_each_other_have_their_own_contexts_and_branches() -> None:
    engine = Scripted(lambda prompt, rng: prompt.rsplit("user\n", 1)[1].split("<|im_end|>")[0], renderer=renderer())
    agents = {"a": Agent("a"), "b": Agent("b")}

    async def workflow(task: Any, team: Team) -> list[str]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(team[role].run(f"I am {role}"), name=role) for role in agents]
        return [task.result().text for task in running]

    effects, tail = await play(workflow, agents=agents, seats=dict.fromkeys(agents, seat(engine)))
    assert tail.output == ["I am a", "I am b"]
    assert sorted(turn.branch for turn in fold(HEAD, effects, tail).turns) == ["/a", "/b"]


async def test_seeds_are_of_the_place_and_of_the_fork() -> None:
    seeds: list[int] = []

    class Seeing(Scripted):
        async def generate(self, request: GenerateRequest) -> Generation:
            seeds.append(request.seed)
            return await super().generate(request)

    engine = Seeing(script("A."), renderer=renderer())
    agents = {"agent": Agent("agent")}

    async def workflow(task: Any, team: Team) -> None:
        await team["agent"].run("One.")
        await team["agent"].run("Two.")

    common: dict[str, Any] = {"agents": agents, "seats": {"agent": seat(engine)}}
    effects, _ = await play(workflow, **common)
    await play(workflow, **common)
    cut = next(effect for effect in effects if effect.kind == "model").completed + 1
    await play(workflow, [e for e in effects if e.completed < cut], head=replace(HEAD, id="fork", seed=99), **common)
    one, two, one_again, two_again, two_of_fork = seeds
    assert (one, two) == (one_again, two_again)
    assert len({one, two, two_of_fork}) == 3


async def test_a_fork_may_force_the_beginning_of_its_next_turn() -> None:
    def respond(prompt: str, rng: random.Random) -> str:
        return " and so on" if prompt.endswith("I think") else "No."

    engine = Scripted(respond, renderer=renderer())
    forced = tuple(int(token) for token in renderer().encode("I think"))
    head = replace(HEAD, id="fork", fork_forced={":0": forced})

    async def workflow(task: Any, team: Team) -> str:
        return (await team["agent"].run("Go.")).text

    effects, tail = await play(workflow, head=head, agents={"agent": Agent("agent")}, seats={"agent": seat(engine)})
    (turn,) = fold(head, effects, tail).turns
    assert (tail.output, turn.forced) == ("I think and so on", len(forced))
    assert np.array_equal(turn.sampled_ids[: turn.forced], forced)


def test_bad_agents_are_refused() -> None:
    for name in ("", "a:b", "a/b"):
        with pytest.raises(UserError, match="name"):
            Agent(name)
    with pytest.raises(UserError, match="max_turns must be >= 1"):
        Agent("a", max_turns=0)
    with pytest.raises(UserError, match="two tools are called 'lookup'"):
        Agent("a", tools=[lookup, lookup])


async def test_an_unknown_role_is_refused_by_name() -> None:
    async def workflow(task: Any, team: Team) -> None:
        await team["nobody"].run("Go.")

    _, tail = await play(workflow, agents={"agent": Agent("agent")})
    assert tail.failure is not None
    assert "no agent 'nobody'; it has agent" in tail.failure.message
