"""Forks edited by hand: what of the record stands, what is run again, and what an edit may not be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import Agent, Experiment, Policy, Team, workflow
from agentrl.edit import BY_HAND, Sheet
from agentrl.effect import Effect
from agentrl.episode import Episode, digest_ids
from agentrl.errors import UserError
from agentrl.evaluate import cut_after
from agentrl.runtime.record import EDITED
from agentrl.store.sqlite import SQLiteStore
from agentrl.view import render_tree
from tests.agents import call, renderer, script
from tests.runtime.edits import STORY, Desk, asking, changed, place


def outputs(episode: Episode) -> list[list[str]]:
    return [[made.output for made in turn.tool_calls] for turn in episode.turns]


# --- a turn's text ----------------------------------------------------------------------------------------------------------
async def test_an_edited_turn_has_the_ids_of_its_text_and_is_never_trained(tmp_path: Path) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        desk.searched.clear()
        edit = here.sheet(told, 1).edit(changed(here.sheet(told, 1), {"turn 1": call("search", query="elsewhere")}))
        forked = await here.fork(told, edit)
    assert edit.notes == ()
    assert desk.searched == ["elsewhere", "second", "third"]
    turn = forked.turns[0]
    assert turn.text == call("search", query="elsewhere") + "<|im_end|>"
    assert turn.sampled_ids.tolist() == renderer().encode(turn.text).tolist()
    assert np.isnan(turn.logprobs).all()
    assert turn.logprobs.dtype == np.float32
    assert turn.versions == ()
    assert (turn.forced, turn.untrained, turn.trainable) == (len(turn.sampled_ids), BY_HAND, False)
    assert turn.digest == digest_ids(forked.path(turn)) != told.turns[0].digest
    assert [other.trainable for other in forked.turns[1:]] == [True, True]
    assert forked.ledger.sampled_tokens == sum(len(other.sampled_ids) for other in forked.turns[1:])
    assert (forked.status, forked.fork_of) == ("done", told.id)
    assert outputs(forked)[0] == ["all of elsewhere\n"]


async def test_what_lies_before_the_turn_is_shared_and_the_turn_is_not(tmp_path: Path) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        told = await here.run()
        sheet = here.sheet(told, 2)
        forked = await here.fork(told, sheet.edit(changed(sheet, {"turn 2": "I know it."})))
    assert forked.turns[0].sampled_ids.tolist() == told.turns[0].sampled_ids.tolist()
    assert forked.turns[0].trainable
    assert [turn.text for turn in forked.turns[1:]] == ["I know it.<|im_end|>"]
    assert forked.output.startswith("I know it. ")
    assert told.output.startswith("It is so. ")
    with SQLiteStore(tmp_path / "store.db", read_only=True) as store:
        rows = store._reading().rows("SELECT e.id, count(*) FROM effect f JOIN episode e ON e.seq = f.episode GROUP BY e.id")
        own = dict(rows)[forked.id]
        assert own < len(store.journal(forked.id))


async def test_a_turn_that_was_cut_short_gets_no_stop_token(tmp_path: Path) -> None:
    @workflow(Agent("agent", max_tokens=3), name="short")
    async def short(task: str, team: Team) -> str:
        return (await team["agent"].run(task)).text

    async with place(tmp_path, Experiment(short, policies=Policy("policy")), script("a rather long reply")) as here:
        told = await here.run()
        sheet = here.sheet(told, 1)
        forked = await here.fork(told, sheet.edit(changed(sheet, {"turn 1": "another"})))
        with pytest.raises(UserError, match="turn 1 has no text left"):
            sheet.edit(changed(sheet, {"turn 1": ""}))
    assert (forked.turns[0].text, forked.turns[0].finish) == ("another", "length")


async def test_a_stop_token_at_the_end_may_be_written_and_elsewhere_not(tmp_path: Path) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        told = await here.run()
        sheet = here.sheet(told, 3)
        written = sheet.edit(changed(sheet, {"turn 3": "No.<|im_end|>"}))
        assert written.effects[1].turn is not None
        assert written.effects[1].turn.text == "No.<|im_end|>"
        with pytest.raises(UserError, match=r"turn 3 holds the stop token '<\|im_end\|>', which may stand at its end alone"):
            sheet.edit(changed(sheet, {"turn 3": "No.<|im_end|> Yes."}))


@pytest.mark.parametrize(
    ("text", "said"),
    [("<tool_call>{</tool_call>", "turn 1 holds a call that cannot be read"), ("No idea.", "turn 1 calls no tool any more")],
)
async def test_a_text_that_the_parser_does_not_read_as_a_call_is_allowed_and_told(tmp_path: Path, text: str, said: str) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        told = await here.run()
        sheet = here.sheet(told, 1)
        edit = sheet.edit(changed(sheet, {"turn 1": text}))
        forked = await here.fork(told, edit)
    assert any(said in note for note in edit.notes)
    assert forked.status == "done"
    assert forked.turns[0].valid == (text == "No idea.")


# --- results ----------------------------------------------------------------------------------------------------------------
async def test_an_edited_result_leaves_the_turn_as_it_was_sampled(tmp_path: Path) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        desk.searched.clear()
        sheet = here.sheet(told, 2)
        forked = await here.fork(told, sheet.edit(changed(sheet, {"result 2": "nothing\nat all"})))
    assert desk.searched == []
    assert outputs(forked)[:2] == [["all of first\n"], ["all of second\n", "nothing\nat all"]]
    made = forked.turns[1].tool_calls[1]
    assert (made.status, made.arguments, dict(made.data)) == ("ok", {"query": "third"}, {BY_HAND: True})
    assert forked.turns[1].logprobs.tobytes() == told.turns[1].logprobs.tobytes()
    assert [turn.trainable for turn in forked.turns] == [True] * 3
    assert "nothing\nat all" in renderer().decode(forked.turns[2].context_ids)
    tree = render_tree(forked, color=False)
    assert tree.count(BY_HAND) == 1


@pytest.mark.parametrize("first", ["result 1", "result 2"])
async def test_of_two_calls_at_the_same_time_the_other_one_keeps_its_result(tmp_path: Path, first: str) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        desk.searched.clear()
        sheet = here.sheet(told, 2)
        forked = await here.fork(told, sheet.edit(changed(sheet, {first: "other"})))
    kept = "all of third\n" if first == "result 1" else "all of second\n"
    assert sorted(outputs(forked)[1]) == sorted(["other", kept])
    assert desk.searched == []


async def test_a_text_and_a_result_may_be_changed_together_where_the_calls_stay(tmp_path: Path) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        desk.searched.clear()
        sheet = here.sheet(told, 2)
        same = told.turns[1].text.replace("So:", "Well, then:").replace("<|im_end|>", "")
        forked = await here.fork(told, sheet.edit(changed(sheet, {"turn 2": same, "result 2": "other"})))
        with pytest.raises(UserError, match="result 2 answers a call that turn 2 does not make any more as it is changed"):
            sheet.edit(changed(sheet, {"turn 2": same.replace("third", "fourth"), "result 2": "other"}))
    assert forked.turns[1].text.startswith("Well, then:")
    assert outputs(forked)[1] == ["all of second\n", "other"]
    assert desk.searched == ["second"], "the call whose result was not changed is made again"


async def test_the_result_of_an_effect_is_json_and_what_depends_on_it_is_run_again(tmp_path: Path) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        desk.graded.clear()
        sheet = here.sheet(told, 3)
        forked = await here.fork(told, sheet.edit(changed(sheet, {"result 1": '{"score": 40}'})))
        with pytest.raises(UserError, match=r"result 1 must be JSON, as what `team\.effect` gave is"):
            sheet.edit(changed(sheet, {"result 1": "{score: 40}"}))
        with pytest.raises(UserError, match="result 2 was asked for after result 1 came, and may depend on it"):
            sheet.edit(changed(sheet, {"result 1": '{"score": 40}', "result 2": '{"score": 41}'}))
        with pytest.raises(UserError, match="result 1 was asked for after turn 3 came, and may depend on it"):
            sheet.edit(changed(sheet, {"turn 3": "No.", "result 1": '{"score": 41}'}))
    assert desk.graded == ["It is so. 40"]
    assert forked.output == "It is so. 40 1"
    assert forked.reward == 40


async def test_a_call_that_lost_its_episode_can_be_given_a_result(tmp_path: Path) -> None:
    desk = Desk()
    desk.broken = True
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        assert told.failure is not None
        assert (told.status, told.failure.fault) == ("failed", "tool")
        desk.broken = False
        sheet = here.sheet(told, 1)
        assert "the index is gone" in sheet.text
        forked = await here.fork(told, sheet.edit(changed(sheet, {"result 1": "by hand"})))
    assert forked.status == "done"
    assert outputs(forked)[0] == ["by hand"]
    assert forked.turns[0].tool_calls[0].arguments == {"query": "first"}


async def test_an_edited_fork_can_be_forked_and_edited_again(tmp_path: Path) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        told = await here.run()
        sheet = here.sheet(told, 1)
        once = await here.fork(told, sheet.edit(changed(sheet, {"result 1": "once"})))
        sheet = here.sheet(once, 2)
        twice = await here.fork(once, sheet.edit(changed(sheet, {"result 1": "twice"})))
        sheet = here.sheet(twice, 1)
        thrice = await here.fork(twice, sheet.edit(changed(sheet, {"turn 1": "Done."})))
    assert outputs(twice)[:2] == [["once"], ["twice", "all of third\n"]]
    assert thrice.output.startswith("Done. ")


async def test_a_document_without_a_change_is_a_plain_fork(tmp_path: Path) -> None:
    desk = Desk()
    async with place(tmp_path, asking(desk)) as here:
        told = await here.run()
        sheet = here.sheet(told, 2)
        edit = sheet.edit(sheet.text)
        left_out = sheet.edit(f"# nothing\n>>>> turn 2\n{sheet.text.split('said' + chr(10))[1].split(chr(10) + chr(10))[0]}")
        forked = await here.fork(told, edit)
    assert (edit.effects, left_out) == ((), edit)
    assert [turn.digest for turn in forked.turns[:2]] == [turn.digest for turn in told.turns[:2]]
    with SQLiteStore(tmp_path / "store.db", read_only=True) as store:
        assert [head.split for head in store.heads()] == ["serve", "fork"]


# --- branches ---------------------------------------------------------------------------------------------------------------
def side_by_side(gates: dict[str, asyncio.Event]) -> Experiment[Any, Any]:
    """Two effects at the same time, each followed by a reward on its own branch; then a turn, and an effect."""

    async def part(name: str) -> str:
        if name in gates:
            await gates[name].wait()
        return name

    @workflow(Agent("agent"), name="side")
    async def side(task: str, team: Team) -> list[str]:
        async def branch(name: str) -> str:
            got = await team.effect(name, part, name)
            team.reward(len(got), name=name)
            if name in gates:
                return got
            for gate in gates.values():
                await team.effect("open", gate.set)
            return got

        reply = await team["agent"].run(task)
        async with asyncio.TaskGroup() as tasks:
            both = [tasks.create_task(branch(name), name=name) for name in ("left", "right")]
        return [reply.text, *(task.result() for task in both)]

    return Experiment(side, policies=Policy("policy"))


@pytest.mark.parametrize("name", ["left", "right"])
async def test_what_a_branch_records_on_its_way_is_recorded_anew(tmp_path: Path, name: str) -> None:
    gates = {"left": asyncio.Event()}
    async with place(tmp_path, side_by_side(gates), script("Hm.")) as here:
        told = await here.run()
        sheet = here.sheet(told, 1)
        title = next(line[5:13] for line in sheet.text.split("\n") if f"effect {name} " in line)
        forked = await here.fork(told, sheet.edit(changed(sheet, {title: '"edited"'})))
    assert forked.status == "done", forked.failure
    expected = ["edited" if part == name else part for part in ("left", "right")]
    assert forked.output == ["Hm.", *expected]
    assert {reward.name: reward.value for reward in forked.rewards} == {
        part: float(len(got)) for part, got in zip(("left", "right"), expected, strict=True)
    }


async def test_a_turn_beside_the_edited_one_stands_as_it_was_sampled(tmp_path: Path) -> None:
    @workflow(Agent("a"), Agent("b"), name="both")
    async def both(task: str, team: Team) -> list[str]:
        async with asyncio.TaskGroup() as tasks:
            replies = [tasks.create_task(team[name].run(f"{task} {name}"), name=name) for name in ("a", "b")]
        return [task.result().text for task in replies]

    said: list[str] = []

    def respond(prompt: str, rng: random.Random) -> str:
        said.append(prompt)
        return f"{len(said)} it is"

    async with place(tmp_path, Experiment(both, policies=Policy("policy")), respond) as here:
        told = await here.run()
        with pytest.raises(UserError, match=r"turn 1 .* was still being sampled when the next one began beside it"):
            here.sheet(told, 1)
        sheet = here.sheet(told, 2)
        forked = await here.fork(told, sheet.edit(changed(sheet, {"turn 2": "None of it."})))
    assert told.output == ["1 it is", "2 it is"]
    assert forked.output == ["1 it is", "None of it."]
    assert len(said) == 2, "nothing was sampled again"


# --- crash ------------------------------------------------------------------------------------------------------------------
def killed(path: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """Forks with an edit, or goes on with the fork, in a process that dies at a fault."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"AGENTRL_FAULT": fault, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.runtime.edited", str(path)]
    return subprocess.run(command, env=environment, cwd=root, timeout=60, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    "fault", ["store.after_commit:1", "tool.done:1", "model.done:1", "store.mid_commit:1", "effect.done:2"]
)
async def test_a_killed_edited_fork_goes_on_with_its_edit(tmp_path: Path, fault: str) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        await here.run(group="told")
    died = killed(tmp_path, fault)
    assert died.returncode == -signal.SIGKILL, died.stderr
    last = killed(tmp_path, "")
    assert last.returncode == 0, last.stderr
    async with place(tmp_path, asking(Desk())) as here:
        forked = here.store.episode("told+fork.0")
        await here.check(forked)
    assert forked.status == "done"
    assert outputs(forked)[1][0] == "by hand"
    with SQLiteStore(tmp_path / "store.db", read_only=True) as store:
        assert sum(effect.name == EDITED for effect in store.journal(forked.id)) == 1


async def test_a_fork_cut_off_before_its_edit_was_stored_does_not_go_on_without_it(tmp_path: Path) -> None:
    async with place(tmp_path, asking(Desk())) as here:
        told = await here.run(group="told")
        head = replace(next(iter(here.store.heads())), id="told+fork.0", group="told+fork", fork_of=told.id, fork_cut=3)
        here.store.begin(replace(head, split=EDITED))
        await here.store.flush()
    async with place(tmp_path, asking(Desk())) as here:
        with pytest.raises(UserError, match="was cut off before its edit was stored"):
            await here.runtime.run("Go.", group="told+fork")


# --- documents ---------------------------------------------------------------------------------------------------------------
@lru_cache
def recorded_story() -> tuple[Episode, tuple[Effect, ...]]:
    import tempfile

    async def told() -> tuple[Episode, tuple[Effect, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            async with place(Path(folder), asking(Desk()), STORY) as here:
                episode = await here.run()
                await here.store.flush()
                return here.store.episode(episode.id), here.store.journal(episode.id)

    return asyncio.run(told())


def sheet_of(texts: list[str] | None = None) -> Sheet:
    """The sheet of turn 2, with other outputs of its two calls."""
    episode, journal = recorded_story()
    if texts is not None:
        left = iter(texts)
        of_turn = [e for e in journal if e.kind == "tool" and e.value["turn"] == episode.turns[1].id]
        new = {e.key: replace(e, value={**e.value, "output": next(left)}) for e in of_turn}
        journal = tuple(new.get(effect.key, effect) for effect in journal)
    return Sheet(episode, journal, 2, cut_after(journal, episode, 2), renderer(), asking(Desk()).workflow.agents)


WRONG = [
    ("", "the document is empty: nothing was forked"),
    ("# only\n\n# comments\n", "the document is empty: nothing was forked"),
    ("hello\n>>>> turn 2\nx", "line 1 stands above the first >>>> line and is no comment: 'hello'"),
    (">>>> turn 2\nx\n>>>> result 9\ny", r"line 3 begins a section 'result 9'; this document has turn 2, result 1, result 2"),
    (">>>> turn 1\nx", "line 1 begins a section 'turn 1'; this document has turn 2"),
    (">>>> \nx", "line 1 begins a section ''"),
    (">>>> turn 2\nx\n>>>> turn 2\ny", "line 3 begins 'turn 2' a second time"),
]


@pytest.mark.parametrize(("document", "said"), WRONG)
def test_a_document_that_does_not_parse_says_which_line(document: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sheet_of().edit(document)


def test_no_turn_is_nothing_to_edit() -> None:
    episode, journal = recorded_story()
    with pytest.raises(UserError, match=r"--fork 0 keeps no turn of .*: there is nothing to edit"):
        Sheet(episode, journal, 0, 0, renderer(), {})


def test_another_tokenizer_is_told() -> None:
    episode, journal = recorded_story()
    episode = replace(episode, turns=(replace(episode.turns[0], tokenizer="other"),))
    with pytest.raises(UserError, match="with another tokenizer than the model's here has"):
        Sheet(episode, journal, 1, 10, renderer(), {})


TEXTS = st.text() | st.lists(st.sampled_from(["", ">>>> turn 2", ">>>>> x", "# no", "a", " ", "\r", "\x1b[2J", "\udcff"])).map(
    "\n".join
)


@given(st.lists(TEXTS, min_size=2, max_size=2))
def test_whatever_a_tool_wrote_an_unchanged_document_changes_nothing(texts: list[str]) -> None:
    sheet = sheet_of(texts)
    document = sheet.text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    assert sheet.edit(document).effects == ()


@given(st.lists(TEXTS, min_size=2, max_size=2), TEXTS)
def test_whatever_is_written_for_a_result_is_what_the_model_gets(texts: list[str], new: str) -> None:
    sheet = sheet_of(texts)
    mark = next(line.split()[0] for line in sheet.text.split("\n") if line.startswith(">>>>"))
    new = new.replace("\r", "").replace(f"{mark} ", "")
    edit = sheet.edit(f"{mark} result 1\n{new}\n")
    by_hand = [effect.value["output"] for effect in edit.effects if effect.note.startswith(BY_HAND)]
    assert [text.rstrip() for text in by_hand] == [new.rstrip()] * len(by_hand)
    assert by_hand or new.rstrip() == texts[0].rstrip()


def test_line_ends_of_another_system_are_no_change() -> None:
    sheet = sheet_of()
    assert sheet.edit(sheet.text.replace("\n", "\r\n")).effects == ()


def test_an_edit_is_json_in_the_journal() -> None:
    sheet = sheet_of()
    edit = sheet.edit(changed(sheet, {"result 1": "x"}))
    note = edit.effects[0]
    assert (note.kind, note.name) == ("note", EDITED)
    assert json.loads(json.dumps(note.value))["changed"] == ["result 1"]
    assert len(note.value["places"]) == len(edit.effects) - 1
