"""What an episode says of the states between its turns: canonical keys, which need nothing from the workflow."""

from __future__ import annotations

from agentrl.tool import ToolOutput
from tests.agents import Played, ask, call, script


async def search(query: str, size: int = 1) -> ToolOutput:
    """Search."""
    return ToolOutput(f"about {query}", state=f"at {query}" if query == "room" else "")


async def played(*replies: str) -> Played:
    return await ask(script(*replies, "done"), tools=[search])


async def test_a_turn_that_called_tools_has_an_action_and_the_state_in_which_the_next_began() -> None:
    first, second, last = (await played(call("search", query="a"), call("search", query="b"))).episode.turns
    assert first.state and second.state and last.state
    assert first.state.after == second.state.before and second.state.after == last.state.before
    assert len({first.state.action, second.state.action, ""}) == 3
    assert (last.state.action, last.state.after) == ("", "")


async def test_equal_calls_are_one_action_however_they_were_written() -> None:
    one = await played(call("search", query="a", size=2))
    other = await played(call("search", size=2, query="a"))
    assert one.episode.turns[0].text != other.episode.turns[0].text
    assert one.episode.turns[0].state == other.episode.turns[0].state


async def test_another_argument_is_another_action() -> None:
    states = [(await played(call("search", query="room", size=size))).episode.turns[0].state for size in (1, 2)]
    assert states[0] and states[1]
    assert states[0].after == states[1].after, "both end where the tool says"
    assert states[0].action != states[1].action


async def test_two_calls_that_a_turn_made_at_once_are_one_action() -> None:
    both = f"{call('search', query='a')}\n{call('search', query='b')}"
    first, last = (await played(both)).episode.turns
    assert first.state and last.state
    assert len(first.tool_calls) == 2 and first.state.action and first.state.after == last.state.before
