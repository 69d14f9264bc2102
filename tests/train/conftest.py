from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.small import warmed


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model after a few supervised steps."""
    return warmed(tmp_path_factory.mktemp("warm"))
