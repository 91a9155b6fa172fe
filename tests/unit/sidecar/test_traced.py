"""Requests as spans: what a refusal leaves behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from daemon.domain.errors import Problem
from daemon.domain.tracing import NO_TRACER, Span
from daemon.sidecar.traced import traced
from tests.support.circles import circles_of


async def test_a_refusal_leaves_no_circle() -> None:
    """It comes through as it was raised, and is gone once it was answered."""
    request: Any = SimpleNamespace(method="GET", headers=CIMultiDict())

    async def refuse(_: Span) -> Any:
        raise Problem(404, "unknown_connection", "There is none.")

    with circles_of(Problem) as left:
        with pytest.raises(Problem) as raised:
            await traced(NO_TRACER, request, "/v1/some", refuse)
        assert raised.value.code == "unknown_connection"
        del raised
    assert left == []
