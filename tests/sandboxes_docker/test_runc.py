"""Every claim that is made of `Process` holds for Docker, but for those that name its own parts."""

from __future__ import annotations

import pytest

from tests.sandboxes import test_process, test_process_escapes, test_process_limits
from tests.sandboxes_docker import engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, session, host = engine.backend_of(""), engine.session, test_process_escapes.host
globals().update(
    engine.claims(
        test_process,
        test_process_limits,
        test_process_escapes,
        without="""
        test_a_network_is_refused_with_what_to_do test_bad_specs_are_refused test_what_isolates_is_said_in_a_line
        test_a_process_1_that_speaks_nonsense_is_a_sandbox_error test_a_process_1_that_is_silent_is_a_sandbox_error
        test_a_listing_that_breaks_off_is_a_sandbox_error test_escape_would_get_through_without_a_sandbox
        """,
    )
)
