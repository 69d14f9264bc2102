"""Servers as child processes: started together, told of when they fail, and ended however we end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from agentrl.engines.launch import Command, Server, Servers, free_port, sglang_command, vllm_command
from agentrl.engines.launch.commands import gpu_numbers
from agentrl.errors import EngineError, UserError

SERVES = """
import http.server, signal, subprocess, sys
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, http.server.ThreadingHTTPServer, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def serving(name: str = "server", code: str = SERVES, manner: str = "polite", grace_s: float = 5.0) -> Command:
    port = free_port()
    arguments = (sys.executable, "-c", code, str(port), manner)
    return Command(name, arguments, f"http://127.0.0.1:{port}", "/", grace_s=grace_s)


def test_a_port_is_given_once_as_its_server_may_not_listen_yet() -> None:
    ports = [free_port() for _ in range(3000)]
    assert all(port not in ports[max(0, place - 100) : place] for place, port in enumerate(ports))


def child_in(log: Path) -> int:
    """The process that the server started in its turn."""
    return int(log.read_text().split("child ", 1)[1].split()[0])


def within(seconds: float, holds: Callable[[], bool]) -> None:
    """Returns as soon as it holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """No process has this id; one that died and that nobody waited for counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def gone(pid: int) -> None:
    """Returns when the process is."""
    within(20, lambda: is_gone(pid))


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def test_servers_answer_inside_the_block_and_are_gone_with_their_children_after_it(tmp_path: Path) -> None:
    async with Servers([serving("a"), serving("b")], tmp_path) as servers:
        assert [await status(server.url) for server in servers] == [200, 200]
        children = [child_in(tmp_path / f"{name}.log") for name in "ab"]
    for child in children:
        gone(child)
    assert not any(server.running for server in servers)


async def test_a_server_that_heeds_no_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    async with Server(serving(manner="stubborn", grace_s=0.2), tmp_path / "s.log") as server:
        pass
    assert not server.running
    gone(child_in(tmp_path / "s.log"))


async def test_a_server_that_dies_while_it_starts_raises_with_the_end_of_its_log_and_ends_the_others(tmp_path: Path) -> None:
    dies = serving("b", "import sys; print('no such model'); sys.exit(3)")
    servers = Servers([serving("a"), dies], tmp_path)
    with pytest.raises(EngineError, match=r"b ended with exit code 3(.|\n)*b\.log(.|\n)*no such model"):
        async with servers:
            raise AssertionError("not reached")
    assert not any(server.running for server in servers.servers)


async def test_a_server_that_never_serves_is_given_up_and_ended(tmp_path: Path) -> None:
    silent = serving(code="import time; print('loading', flush=True); time.sleep(600)")
    server = Server(silent, tmp_path / "s.log", start_s=1.0)
    with pytest.raises(EngineError, match=r"did not serve within 1 s(.|\n)*loading"):
        await server.start()
    assert not server.running


async def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    silent = serving(code="import os, time; print('child', os.getpid(), flush=True); time.sleep(600)")
    server = Server(silent, tmp_path / "s.log")
    task = asyncio.create_task(server.start())
    await asyncio.to_thread(within, 20, lambda: server.log.exists() and "child" in server.log.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gone(child_in(server.log))


async def test_a_server_that_ended_can_be_started_again_and_its_log_goes_on(tmp_path: Path) -> None:
    async with Server(serving(), tmp_path / "s.log") as server:
        await server.stop()
        assert not server.running
        await server.start()
        assert await status(server.url) == 200
        assert (tmp_path / "s.log").read_text().count("child") == 2


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda end: end.name)
def test_servers_do_not_outlive_a_parent_that_ends_by(end: signal.Signals, tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from agentrl.engines.launch import Server
        from tests.engines.test_servers import serving

        async def main():
            async with Server(serving(), Path(sys.argv[1])):
                print("up", flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """)
    log = tmp_path / "s.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(log)], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.send_signal(end)
        parent.wait(timeout=20)
    gone(child_in(log))


def test_the_command_of_a_cpu_server_has_the_flags_of_a_cpu_and_the_users_arguments_last() -> None:
    command = sglang_command(Path("model"), args=("--max-total-tokens", "500"))
    assert "torch_native" in command.arguments
    assert command.arguments[-2:] == ("--max-total-tokens", "500")
    assert command.environment["SGLANG_USE_CPU_ENGINE"] == "1"


@pytest.mark.parametrize("make", [sglang_command, vllm_command])
def test_gpus_are_dealt_out_by_tp_and_switch_the_flags_of_a_cpu_off(make: object) -> None:
    assert callable(make)
    commands = [make(Path("model"), number=number, tp=2, gpus="0-2,5") for number in range(2)]
    assert [command.environment["CUDA_VISIBLE_DEVICES"] for command in commands] == ["0,1", "2,5"]
    assert not {"cpu", "float32", "--enforce-eager"} & set(commands[0].arguments)


@pytest.mark.parametrize("text", ["", "a", "0-", "3-1", "0,0"])
def test_gpus_that_name_none_or_one_twice_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="gpus="):
        gpu_numbers(text)


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"gpus='0-2' are too few: server 1 of tp=2"):
        sglang_command(Path("model"), number=1, tp=2, gpus="0-2")


def test_a_python_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_SGLANG_PYTHON", "/no/such/python")
    with pytest.raises(UserError, match=r"'/no/such/python' is no Python .* set AGENTRL_SGLANG_PYTHON"):
        sglang_command(Path("model"))
