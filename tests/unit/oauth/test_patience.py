"""The end of a request's time, also where the process stood still until long after it."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from daemon.oauth.patience import patience

_SOON = 0.02


def stand_still() -> None:
    """Do what SIGSTOP does to an event loop: nothing runs until well after the deadline."""
    time.sleep(_SOON + 0.2)


async def test_what_arrived_while_the_process_stood_still_is_read() -> None:
    """A reply that is in the socket is not thrown away by a deadline that comes late."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    async with patience(_SOON, has_sent=lambda: True):
        theirs.sendall(b"reply")
        theirs.close()
        stand_still()
        assert await reader.read() == b"reply"
    writer.close()


async def late(*, has_sent: bool) -> None:
    """Wait for ever, in a process that stands still until after the deadline."""
    async with patience(_SOON, has_sent=lambda: has_sent):
        stand_still()
        await asyncio.Event().wait()


async def test_a_late_deadline_ends_what_has_sent_nothing() -> None:
    """Nobody begins to send after the deadline."""
    with pytest.raises(TimeoutError):
        await late(has_sent=False)


async def test_a_deadline_that_is_in_time_ends_at_once() -> None:
    """In a process that runs, the time is what it says."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(TimeoutError):
        async with patience(_SOON, has_sent=lambda: True):
            await asyncio.Event().wait()
    assert loop.time() - began < 2.0


async def test_what_ends_in_time_is_left_alone() -> None:
    """Nothing is raised afterwards."""
    async with patience(_SOON, has_sent=lambda: True):
        pass
    await asyncio.sleep(_SOON * 2)
