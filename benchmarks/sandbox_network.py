"""A sandbox's network by list: a request to a server of this machine, carried, beside the same program in a bare subprocess.

    python benchmarks/sandbox_network.py [--megabytes 64] [--requests 200]

A request is a connection, a byte there and a byte back; milliseconds, median. Docker and gVisor need `make sandboxes`; what is
absent is said and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence

from agentrl.errors import UserError
from agentrl.sandbox import Command, SandboxLimits, SandboxSpec
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.process import Process

CLIENT = """
import json, socket, statistics, sys, time
port, requests, size = map(int, sys.argv[1:])
def connected(what):
    s = socket.create_connection(("localhost", port))
    s.sendall(what)
    return s
took = []
for _ in range(requests):
    began = time.perf_counter()
    with connected(b"1") as s:
        s.recv(1)
    took.append(1000 * (time.perf_counter() - began))
began, left = time.perf_counter(), size
with connected(b"d%d\\n" % size) as s:
    while left > 0:
        left -= len(s.recv(1 << 18))
down = size / (time.perf_counter() - began) / 1e6
began = time.perf_counter()
with connected(b"u") as s:
    s.sendall(bytes(size))
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
print(json.dumps([statistics.median(took), down, size / (time.perf_counter() - began) / 1e6]))
"""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    what = await reader.read(1)
    if what == b"d":
        left = int(await reader.readline())
        while left > 0:
            writer.write(bytes(min(left, 1 << 18)))
            await writer.drain()
            left -= 1 << 18
    elif what == b"u":
        while await reader.read(1 << 18):
            pass
    writer.write(b"1")
    writer.close()


async def bare(argv: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode()


async def boxed(spec: SandboxSpec, limits: SandboxLimits, argv: Sequence[str]) -> str:
    async with spec.open() as backend:
        session = await backend.session(limits)
        ran = await session.exec(Command(("python3", *argv), timeout=120))
        await session.close()
        return ran.text or sys.exit(ran.error_text)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--requests", type=int, default=200)
    asked = parser.parse_args()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        limits = SandboxLimits(network=(f"localhost:{port}",))
        argv = ("-c", CLIENT, str(port), str(asked.requests), str(asked.megabytes << 20))
        print(f"{f'load {os.getloadavg()[0]:.1f}':24} {'request ms':>11} {'down MB/s':>10} {'up MB/s':>9} {'beside bare':>26}")
        direct = json.loads(await bare(argv))
        print(f"{'a bare subprocess':24} {direct[0]:11.3f} {direct[1]:10.0f} {direct[2]:9.0f}")
        specs = {"process": Process(warm=0), "docker": Docker(warm=0), "gvisor": Docker(warm=0, runtime="runsc")}
        for name, spec in specs.items():
            try:
                ours = json.loads(await boxed(spec, limits, argv))
            except UserError as error:
                print(f"{name}: left out, {error}")
                continue
            ratios = f"{ours[0] / direct[0]:.1f}x {ours[1] / direct[1]:.2f}x {ours[2] / direct[2]:.2f}x"
            print(f"{name:24} {ours[0]:11.3f} {ours[1]:10.0f} {ours[2]:9.0f} {ratios:>26}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
