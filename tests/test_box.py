"""Boxes: sandboxes whose every call is an effect of the journal. Over the real backend, but where one has to fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from agentrl import Agent, Team
from agentrl.effect import Effect
from agentrl.episode import FINISHED, Episode
from agentrl.errors import SandboxError, UserError
from agentrl.rollout import RandomTree
from agentrl.sandbox import Backend, Command, Entry, Ran, SandboxLimits, Session
from agentrl.store.contract import EpisodeHead
from agentrl_sandboxes.process import Process
from agentrl_tools.files import files
from agentrl_tools.python import Python
from agentrl_tools.shell import Shell
from tests.agents import call, script
from tests.boxes import experiment, running, store_at

REAL = Process(warm=0)


@dataclass(frozen=True)
class Counted:
    """The real sandbox; its sessions are counted, and it says of itself what a test wants."""

    fork: Literal["exact", "replay", "none"] = "replay"
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    opened: list[Session] = field(default_factory=list[Session])
    isolation: str = "real"
    _inner: list[Backend] = field(default_factory=list[Backend])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        async with REAL.open() as inner:
            self._inner[:] = [inner]
            yield self

    async def session(self, limits: SandboxLimits) -> Session:
        self.opened.append(await self._inner[0].session(limits))
        return self.opened[-1]


async def steady(task: str, team: Team) -> list[Any]:
    """Uses every call; gives the same whenever it is run."""
    async with team.sandbox() as box:
        await box.write("in/data", b"\xff\x00" + task.encode())
        size = await box.exec(["wc", "-c"], stdin=await box.read("in/data"))
        await box.python("x = 20")
        value = await box.python("x + 1")
        echo = await box.exec("cat; echo $NAME; pwd; exit 3", stdin="in ", cwd="/work/in", env={"NAME": "n"})
        names = [(entry.name, entry.kind, entry.size) for entry in await box.list("in")]
        missing = ""
        try:
            await box.read("nothing")
        except FileNotFoundError as error:
            missing = f"{error.errno} {error.filename}"
        return [size.text.strip(), value.text.strip(), echo.text, echo.status, [list(name) for name in names], missing]


GIVEN = ["4", "21", "in n\n/work/in\n", 3, [["data", "file", 4]], "2 nothing"]


async def played(function: Any, folder: Path, sandbox: Any = REAL, **settings: Any) -> Episode:
    """One episode, stored in a folder."""
    respond = settings.pop("respond", None)
    with store_at(folder) as store:
        async with running(experiment(function, sandbox, **settings), store, respond) as runtime:
            return await runtime.run("go", group="g")


def recorded(folder: Path) -> tuple[EpisodeHead, tuple[Effect, ...]]:
    """The first stored episode of a folder."""
    with store_at(folder) as store:
        head = next(iter(store.heads()))
        return head, store.journal(head.id)


async def goes_on(function: Any, folder: Path, record: Sequence[Effect], head: EpisodeHead, sandbox: Any = REAL) -> Episode:
    """The episode goes on from this record, as after a crash."""
    with store_at(folder) as store:
        store.begin(head)
        store.append(head.id, list(record))
        await store.flush()
    return await played(function, folder, sandbox)


async def test_every_call_is_recorded_and_replayed_without_a_sandbox(tmp_path: Path) -> None:
    episode = await played(steady, tmp_path)
    assert (episode.status, episode.output) == ("done", GIVEN)
    head, record = recorded(tmp_path)
    sandbox = Counted()
    with store_at(tmp_path) as store:
        async with running(experiment(steady, sandbox)) as runtime:
            again = await runtime.replay(head, record, store.tail(head.id), "go")
    assert (again.status, again.output, again.failure) == ("done", GIVEN, None)
    assert sandbox.opened == []


@pytest.mark.parametrize("kept", [1, 4, 6, 8])
async def test_after_a_crash_the_calls_are_made_again(kept: int, tmp_path: Path) -> None:
    await played(steady, tmp_path / "first")
    head, record = recorded(tmp_path / "first")
    episode = await goes_on(steady, tmp_path / "second", record[:kept], head)
    assert (episode.status, episode.output, episode.failure) == ("done", GIVEN, None)
    assert len(recorded(tmp_path / "second")[1]) == len(record)


async def unsteady(task: str, team: Team) -> str:
    async with team.sandbox() as box:
        first = await box.exec("cat /proc/sys/kernel/random/uuid")
        await box.write("seen", first.stdout)
        return (await box.read("seen")).decode()


async def test_calls_that_give_something_else_end_the_episode_as_divergent(tmp_path: Path) -> None:
    await played(unsteady, tmp_path / "first")
    head, record = recorded(tmp_path / "first")
    episode = await goes_on(unsteady, tmp_path / "second", record[:1], head)
    assert (episode.status, episode.rewards) == ("divergent", ())
    assert episode.status not in FINISHED
    assert episode.failure is not None
    assert episode.failure.fault == "replay"
    assert "call 0 of box 1 (exec" in episode.failure.message
    assert "made again, gave something else: stdout was '" in episode.failure.message


async def test_a_sandbox_that_cannot_go_on_twice_says_so_after_a_crash(tmp_path: Path) -> None:
    await played(steady, tmp_path / "first")
    head, record = recorded(tmp_path / "first")
    episode = await goes_on(steady, tmp_path / "second", record[:2], head, Counted("none"))
    assert episode.status == "divergent"
    assert episode.failure is not None
    assert "the sandbox box 1 is gone, and Counted cannot make its calls again" in episode.failure.message


async def test_a_plan_that_branches_needs_a_sandbox_that_can() -> None:
    with pytest.raises(UserError, match="RandomTree branches, and a sandbox of Counted cannot go on twice; --set rollout"):
        async with running(experiment(steady, Counted("none"), rollout=RandomTree())):
            pass


CODER = Agent("coder", max_turns=4)


async def written(task: str, team: Team) -> list[str]:
    """Writes something, asks the model, and reads it."""
    async with team.sandbox() as box:
        await box.exec(task)
        await team["coder"].run("Go.")
        return [(await box.read("seen")).decode(), (await box.exec("cat seen | wc -c")).text.strip()]


@pytest.mark.parametrize(
    ("command", "status"), [("echo same > seen", "done"), ("cat /proc/sys/kernel/random/uuid > seen; cat seen", "divergent")]
)
async def test_a_fork_of_an_ended_episode_makes_its_calls_again(command: str, status: str, tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        async with running(experiment(written, REAL, agents=[CODER]), store) as runtime:
            first = await runtime.run(command, group="g")
            cut = await runtime.cut_before(first, first.turns[0])
            fork = await runtime.fork(command, first, cut, group="g", member=1)
    assert first.status == "done"
    assert fork.status == status, fork.failure
    assert (fork.output == first.output) == (status == "done")


async def test_a_fork_of_a_live_episode_copies_its_sandbox(tmp_path: Path) -> None:
    command = "cat /proc/sys/kernel/random/uuid > seen; cat seen"
    sandbox = Counted("exact")
    with store_at(tmp_path) as store:
        leading = running(experiment(written, sandbox, agents=[CODER]), store)
        async with leading as runtime, runtime.line(command, group="g", member=0) as first:
            cut = await first.point()
            assert cut is not None
            async with runtime.line(command, group="g", member=1, of=first.episode, cut=cut) as second:
                await second.point()
                second.run_on()
                fork = await second.ended()
            first.run_on()
            parent = await first.ended()
    assert (parent.status, fork.status) == ("done", "done"), fork.failure
    assert fork.output == parent.output
    assert len(sandbox.opened) == 1  # the copy came from the session itself


async def test_cancelling_an_episode_ends_all_that_it_started(tmp_path: Path) -> None:
    mark = "31536000.5"

    async def work(task: str, team: Team) -> None:
        async with team.sandbox() as box:
            await box.exec(f"sleep {mark} & (setsid sleep {mark} &) ; sleep {mark}", timeout=100)

    with store_at(tmp_path) as store:
        async with running(experiment(work, REAL), store) as runtime:
            task = asyncio.ensure_future(runtime.run("go", group="g"))
            while alive(mark) < 3:
                assert not task.done(), await task
                await asyncio.sleep(0.005)
            began = time.monotonic()
            runtime.cancel("g.0")
            episode = await task
            left = alive(mark)
            seconds = time.monotonic() - began
    assert episode.status == "cancelled"
    assert (left, seconds < 1.0) == (0, True), seconds


def alive(mark: str) -> int:
    """Processes of this machine whose command line is `sleep MARK`."""
    wanted = f"sleep\0{mark}\0".encode()
    found = 0
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += place.read_bytes() == wanted
        except OSError:
            continue
    return found


async def test_a_call_that_was_given_up_leaves_a_box_that_works(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> str:
        async with team.sandbox() as box:
            await box.exec("true")
            try:
                async with asyncio.timeout(0.1):
                    await box.exec("sleep 100")
            except TimeoutError:
                return (await box.exec("echo here")).text
        return "not given up"

    episode = await played(work, tmp_path)
    assert (episode.status, episode.output) == ("done", "here\n")


async def test_boxes_of_one_episode_are_apart(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> list[int]:
        async with team.sandbox() as one, team.sandbox() as other:
            await one.write("mine", "1")
            return [len(await one.list()), len(await other.list())]

    assert (await played(work, tmp_path)).output == [1, 0]


async def test_calls_at_the_same_time_take_turns_and_resume(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> str:
        async with team.sandbox() as box:
            async with asyncio.TaskGroup() as tasks:
                for number in range(4):
                    tasks.create_task(box.exec(f"echo {number} >> log"), name=str(number))
            return (await box.read("log")).decode()

    episode = await played(work, tmp_path / "first")
    assert sorted(episode.output.split()) == ["0", "1", "2", "3"]
    head, record = recorded(tmp_path / "first")
    made = [effect for effect in record if effect.name == "sandbox.exec"]
    again = await goes_on(
        work, tmp_path / "second", [effect for effect in record if effect.completed <= made[3].completed], head
    )
    assert (again.status, again.output) == ("done", episode.output)


# --- what goes wrong ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Breaking:
    """A sandbox that is lost at its second call."""

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    fork: Literal["replay"] = "replay"
    isolation: str = "none"
    closed: list[int] = field(default_factory=list[int])

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        yield self

    async def session(self, limits: SandboxLimits) -> Session:
        return Lost(self.closed)


class Lost:
    def __init__(self, closed: list[int]) -> None:
        self._calls = 0
        self._closed = closed

    async def exec(self, command: Command) -> Ran:
        return await self.python("")

    async def python(self, code: str, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - the contract's
        self._calls += 1
        if self._calls > 1:
            raise SandboxError("the sandbox ended: out of memory on the host")
        return Ran(0, b"fine")

    async def read(self, path: str) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    async def write(self, path: str, data: bytes) -> None: ...

    async def list(self, path: str) -> Sequence[Entry]:
        return (Entry("odd\udcff\nname", "file", 1),)

    async def fork(self) -> Session | None:
        return None

    async def close(self) -> None:
        self._closed.append(self._calls)


async def by_workflow(task: str, team: Team) -> str:
    async with team.sandbox() as box:
        await box.exec("true")
        return (await box.exec("true")).text


async def by_tool(task: str, team: Team) -> str:
    async with team.sandbox() as box:
        return (await team["coder"].run("Go.", tools=[Python(box)])).text


@pytest.mark.parametrize("function", [by_workflow, by_tool])
async def test_a_sandbox_that_fails_loses_the_episode_and_blames_no_model(function: Any, tmp_path: Path) -> None:
    sandbox = Breaking()
    replies = script(call("python", code="1"), call("python", code="2"), "Done.")
    episode = await played(function, tmp_path, sandbox, agents=[CODER], reward=lambda *_: 1.0, respond=replies)
    assert (episode.status, episode.rewards) == ("failed", ())
    assert episode.status not in FINISHED
    assert episode.failure is not None
    assert episode.failure.fault == "sandbox"
    assert "out of memory on the host" in episode.failure.message
    assert sandbox.closed == [2]


async def test_an_os_error_is_the_codes_doing_and_is_raised_again_on_replay(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> str:
        async with team.sandbox() as box:
            try:
                await box.read("secret")
            except PermissionError as error:
                return f"{error.errno} {error.strerror} {error.filename}"
        return "read it"

    episode = await played(work, tmp_path, Breaking())
    assert episode.output == "13 Permission denied secret"
    head, record = recorded(tmp_path)
    async with running(experiment(work, Breaking())) as runtime:
        again = await runtime.replay(head, record, None, "go")
    assert again.output == episode.output


async def test_names_of_any_bytes_are_recorded(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> list[str]:
        async with team.sandbox() as box:
            return [entry.name for entry in await box.list()]

    assert (await played(work, tmp_path, Breaking())).output == ["odd\udcff\nname"]


async def test_without_a_sandbox_the_workflow_is_told_what_to_set(tmp_path: Path) -> None:
    episode = await played(steady, tmp_path, None)
    assert episode.status == "failed"
    assert episode.failure is not None
    assert episode.failure.fault == "user"
    assert "this experiment has no sandbox; Experiment(..., sandbox=Process()) from agentrl_sandboxes.process" in (
        episode.failure.message
    )


async def test_a_closed_box_is_refused(tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> None:
        async with team.sandbox() as box:
            pass
        await box.exec("true")

    episode = await played(work, tmp_path, Breaking())
    assert episode.failure is not None
    assert episode.failure.message.startswith("UserError: box 1 is closed; call it inside its `async with")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda box: box.exec(""), "a command needs an argv or a shell line, got an empty one"),
        (lambda box: box.exec("true", timeout=0), "a command's timeout must be > 0 seconds, got 0"),
        (lambda box: box.exec(["echo", 5]), "argv, cwd and env are strings, got 5 (int)"),
        (lambda box: box.exec("true", env={"A": 5}), "argv, cwd and env are strings, got 5 (int)"),
        (lambda box: box.exec("true", stdin=None), "text or bytes, got None (NoneType)"),
        (lambda box: box.python(None), "Python code is a string, got None"),
        (lambda box: box.python("1", timeout=-1), "timeout must be > 0 seconds, got -1"),
    ],
)
async def test_a_command_that_is_none_is_refused(use: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> None:
        async with team.sandbox() as box:
            await use(box)

    episode = await played(work, tmp_path, Breaking())
    assert episode.failure is not None
    assert message in episode.failure.message


# --- the tools ------------------------------------------------------------------------------------------------------------


async def read_by(tools: Callable[[Any], list[Any]], *calls: str, folder: Path) -> list[tuple[str, str]]:
    """(status, output) of each call that a model makes in one box."""

    async def work(task: str, team: Team) -> None:
        async with team.sandbox() as box:
            await team["coder"].run("Go.", tools=tools(box))

    agents = [Agent("coder", max_turns=len(calls) + 1)]
    episode = await played(work, folder, agents=agents, respond=script(*calls, "Done."))
    assert episode.status == "done", episode.failure
    return [(made.status, made.output) for turn in episode.turns for made in turn.tool_calls]


async def test_python_keeps_its_names_and_shows_errors(tmp_path: Path) -> None:
    calls = [call("python", code=code) for code in ("x = 2", "print(x)\nx + 1", "x / 0", "import sys; sys.exit(4)", "x")]
    made = await read_by(lambda box: [Python(box)], *calls, folder=tmp_path)
    assert made[:2] == [("ok", "[no output]"), ("ok", "2\n3")]
    assert made[2][0] == "error"
    assert made[2][1].endswith("ZeroDivisionError: division by zero\n[exit status 1]")
    assert made[3] == ("error", "[exit status 4]")
    assert "NameError: name 'x' is not defined" in made[4][1]


async def test_python_that_is_brief_says_the_error_alone(tmp_path: Path) -> None:
    ((status, output),) = await read_by(lambda box: [Python(box, brief=True)], call("python", code="1 / 0"), folder=tmp_path)
    assert (status, output) == ("error", "ZeroDivisionError: division by zero\n[exit status 1]")


async def test_code_that_does_not_end_is_stopped_and_says_so(tmp_path: Path) -> None:
    made = await read_by(
        lambda box: [Python(box, seconds=0.3), Shell(box, seconds=2.0)],
        call("python", code="while True: pass"),
        call("shell", command="echo first; sleep 100"),
        folder=tmp_path,
    )
    assert made == [("error", "[stopped after 0 s]"), ("error", "first\n[stopped after 2 s]")]


async def test_shell_gives_both_streams_and_the_status(tmp_path: Path) -> None:
    made = await read_by(lambda box: [Shell(box)], call("shell", command="echo a; echo b >&2; exit 5"), folder=tmp_path)
    assert made == [("error", "a\nb\n[exit status 5]")]


async def test_files_are_written_listed_and_read(tmp_path: Path) -> None:
    made = await read_by(
        files,
        call("write_file", path="src/a.py", text="x = 'ü'\n"),
        call("list_files", path="src"),
        call("list_files"),
        call("read_file", path="src/a.py"),
        call("read_file", path="src"),
        call("read_file", path="a\0b"),
        call("read_file", path="none"),
        folder=tmp_path,
    )
    assert made[:4] == [("ok", "wrote 8 characters to src/a.py"), ("ok", "a.py 9"), ("ok", "src/"), ("ok", "x = 'ü'\n")]
    assert [status for status, _ in made[4:]] == ["error"] * 3
    assert made[4][1].startswith("read_file failed: IsADirectoryError")
    assert made[6][1].startswith("read_file failed: FileNotFoundError")
