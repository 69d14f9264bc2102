"""What a workflow may not ask of its event loop: input and output beside the journal, and the loop's own driving."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentrl.errors import WorkflowError

_RAW = (
    "add_reader", "remove_reader", "add_writer", "remove_writer",
    "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall", "sock_sendto", "sock_connect",
    "sock_accept", "sock_sendfile",
    "create_connection", "create_server", "create_unix_connection", "create_unix_server", "create_datagram_endpoint",
    "connect_accepted_socket", "start_tls", "sendfile", "connect_read_pipe", "connect_write_pipe",
    "subprocess_shell", "subprocess_exec", "getaddrinfo", "getnameinfo", "add_signal_handler", "remove_signal_handler",
)  # fmt: skip
_DRIVING = (
    "run_forever", "run_until_complete", "stop", "set_debug", "set_task_factory", "set_exception_handler",
    "set_default_executor", "shutdown_default_executor",
)  # fmt: skip
REFUSED = _RAW + _DRIVING


def refused(name: str) -> Callable[..., Any]:
    """A method of the loop that says why it is not there."""
    why = (
        "input and output outside the journal cannot be replayed; do it in a tool or in `await team.effect(name, fn)`"
        if name in _RAW
        else "the runtime drives this loop; leave it as it is"
    )

    def method(*args: Any, **kwargs: Any) -> Any:
        raise WorkflowError(f"the workflow's code uses loop.{name}: {why}")

    return method
