"""A network of a sandbox's own in which nothing but listeners is: whoever holds them answers."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl_sandboxes.process import kernel

SET_FLAGS = 0x8914  # SIOCSIFFLAGS
UP = 0x1
HOSTS = "127.0.0.1 localhost\n"


def enclose(network: Mapping[str, Any], offer: Callable[[list[int]], None]) -> None:
    """Moves this process into a new network, its loopback up, and hands over a listener for each place.

    The network belongs to this process's user namespace, in which a sandbox is nobody: it can neither change it nor take a
    port below 1024. `OSError` if the kernel refuses.
    """
    kernel.unshare(kernel.NEW_NETWORK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", b"lo", UP))
    listeners = [socket.create_server((address, port), backlog=64) for address, port in network["places"]]
    offer([listener.fileno() for listener in listeners])
    for listener in listeners:
        listener.close()


def hosts(names: Mapping[str, str]) -> str:
    """/etc/hosts, where alone a sandbox finds names."""
    return HOSTS + "".join(f"{address} {name}\n" for name, address in names.items())


def shown(network: Mapping[str, Any], home: Any) -> Sequence[str]:
    """bubblewrap's arguments: the names, and what TLS trusts."""
    file = home / "hosts"
    file.write_text(hosts(network["names"]))
    certificates = ("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs", "/etc/pki/ca-trust/extracted")
    return ("--ro-bind", str(file), "/etc/hosts", *(word for path in certificates for word in ("--ro-bind-try", path, path)))
