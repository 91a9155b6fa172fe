"""The stores that the contract's tests run on."""

from __future__ import annotations

import pytest

from daemon.persistence.cipher import TokenCipher
from tests.support.refresh_stages import MemoryStage, PostgresStage, Stage


@pytest.fixture(params=["memory", "postgresql"])
def stage(request: pytest.FixtureRequest, cipher: TokenCipher) -> Stage:
    """Each kind of refresh store in turn."""
    if request.param == "memory":
        return MemoryStage()
    return PostgresStage(request.getfixturevalue("database"), cipher)
