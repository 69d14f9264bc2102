"""Checks that the code stays inside: the least that a sandbox must stop. The docstring of each is its claim."""

from __future__ import annotations

import asyncio

from agentrl.testing.claims import require
from agentrl.testing.sandbox_subject import HOST_MARK, Subject, fails_as, program, same, sh, works


async def files_of_the_host_are_not_seen(s: Subject) -> None:
    """A file that anyone on the host may read cannot be read, nor its folder listed, by any way round."""
    session = await s.session()
    file, folder = str(s.host.file), str(s.host.folder)
    ways = [
        file,
        f"/proc/1/root{file}",
        f"/work/{'../' * 30}{file}",
        f"/proc/self/root{file}",
        f"/proc/1/cwd/{'../' * 30}{file}",
    ]
    code = f"""if True:
        import os
        for way in {ways}:
            for look in (lambda: open(way).read(), lambda: os.listdir(os.path.dirname(way))):
                try: print(way, look())
                except OSError: pass
    """
    same((await program(session, code)).text, "", f"what was seen of {folder}")
    for way in ways:
        await fails_as(session.read(way), OSError, f"the host, reading {way}")


async def files_of_the_host_are_not_written(s: Subject) -> None:
    """A folder of the host cannot be written, neither by the code nor by `write`."""
    session = await s.session()
    await program(session, f"open({str(s.host.folder / 'by-code')!r}, 'w')")
    await fails_as(session.write("/no-such-root/x/../../proc/1/root" + str(s.host.folder / "by-host"), b""), OSError, "a write")
    same(sorted(path.name for path in s.host.folder.iterdir()), ["secret"], "the files of the host's folder")


async def links_are_not_followed_out(s: Subject) -> None:
    """A link to a file or folder of the host leads nowhere for `read`, `write` and `list`."""
    session = await s.session()
    await program(session, f"import os; os.symlink({str(s.host.file)!r}, 'file'); os.symlink({str(s.host.folder)!r}, 'folder')")
    await fails_as(session.read("file"), OSError, "reading through a link")
    await fails_as(session.read("folder/secret"), OSError, "reading through a link to a folder")
    await fails_as(session.list("folder"), OSError, "listing through a link")
    await fails_as(session.write("file", b"changed"), OSError, "writing through a link")
    await fails_as(session.write("folder/new", b""), OSError, "writing through a link to a folder")
    same(s.host.file.read_text(), s.host.word, "the host's file")


async def the_hosts_environment_is_not_seen(s: Subject) -> None:
    """Variables of the host stand neither in the environment of the code nor in that of any process that it sees."""
    code = f"""if True:
        import os
        said = [dict(os.environ)]
        for name in os.listdir("/proc"):
            try: said.append(open(f"/proc/{{name}}/environ", "rb").read() if name.isdigit() else b"")
            except OSError: pass
        print({HOST_MARK!r} in repr(said), {s.host.word!r} in repr(said))
    """
    session = await s.session()
    for ran in (await program(session, code), await session.python(code)):
        same(ran.text, "False False\n", "whether the host's environment was seen")


async def the_hosts_processes_are_not_reached(s: Subject) -> None:
    """A process of the host is neither signalled nor ended."""
    await program(await s.session(), f"import os; os.kill({s.host.process.pid}, 9)")
    await asyncio.sleep(0.2)  # a signal that was sent has arrived by then
    require(s.host.process.poll() is None, f"a process of the host was ended with {s.host.process.returncode}")


async def the_hosts_servers_are_not_reached(s: Subject) -> None:
    """There is no network: neither the host's loopback, nor its abstract sockets, nor any address outside."""
    code = f"""if True:
        import socket
        def stream(family, address):
            one = socket.socket(family)
            one.settimeout(2)
            one.connect(address)
        def datagram():
            one = socket.socket(type=socket.SOCK_DGRAM)
            one.connect(("192.0.2.1", 53))
            one.send(b"x")
        ways = {{
            "the loopback": lambda: stream(socket.AF_INET, ("127.0.0.1", {s.host.port})),
            "an abstract socket": lambda: stream(socket.AF_UNIX, "\\0{s.host.abstract}"),
            "an address outside": datagram,
            "names": lambda: socket.getaddrinfo("example.org", 80),
        }}
        for name, way in ways.items():
            try:
                way()
                print(name)
            except OSError:
                pass
    """
    same((await program(await s.session(), code)).text, "", "what was reached")


async def neighbours_are_not_reached(s: Subject) -> None:
    """Sessions share no files, no sockets and no processes."""
    one, other = await s.session(), await s.session()
    listening = "import os, socket; s = socket.create_server(('127.0.0.1', 0)); a = socket.socket(socket.AF_UNIX)"
    ran = await one.python(
        f"{listening}; a.bind('\\0agentrl-check-neighbour'); a.listen(); open('/tmp/agentrl-check', 'w').write('1')\n"
        "print(s.getsockname()[1])"
    )
    code = f"""if True:
        import os, socket
        ways = {{
            "a port": lambda: socket.create_connection(("127.0.0.1", {int(ran.stdout or 0)}), 2),
            "a socket": lambda: socket.socket(socket.AF_UNIX).connect("\\0agentrl-check-neighbour"),
            "a file": lambda: open("/tmp/agentrl-check"),
        }}
        for name, way in ways.items():
            try:
                way()
                print(name)
            except OSError:
                pass
    """
    found = (await program(other, code)).text
    await sh(one, "rm -f /tmp/agentrl-check")
    same(found, "", "what was reached of a neighbour")
    await works(one, "a neighbour that looked for it")


ISOLATION_CHECKS = (
    files_of_the_host_are_not_seen, files_of_the_host_are_not_written, links_are_not_followed_out,
    the_hosts_environment_is_not_seen, the_hosts_processes_are_not_reached, the_hosts_servers_are_not_reached,
    neighbours_are_not_reached,
)  # fmt: skip
