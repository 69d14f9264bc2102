"""A network by list in containers that gVisor runs: the same claims."""

from __future__ import annotations

import pytest

from tests.sandboxes import test_process_escapes
from tests.sandboxes_docker import engine, test_network

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, host = engine.backend_of("runsc"), test_process_escapes.host
globals().update(engine.claims(test_network, without=""))
