"""What the commands share: how they learn their invocation, and how they run async work."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from daemon.cli.invocation import Invocation

T = TypeVar("T")

EVERYWHERE = "--config, --output, --api and --key-file may also stand here: see tokenward --help."


def call_of(context: typer.Context) -> Invocation:
    """Return what the global options said."""
    call = context.obj
    if not isinstance(call, Invocation):
        raise TypeError("the global options were not read")
    return call


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on an event loop of its own."""
    # A third of what `tokenward version` would otherwise take.
    import asyncio

    return asyncio.run(work)
