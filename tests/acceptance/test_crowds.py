"""Many at once: who waits for whom, and how often the provider is asked."""

from __future__ import annotations

import asyncio
import signal

import pytest
from aiohttp import ClientSession, TCPConnector, TraceConfig

from tests.support.polling import eventually
from tests.support.raw_server import Wire, writes_then_waits
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

EXPIRED = {
    "access_token": "old",
    "refresh_token": "old",
    "expires_at": "2020-01-01T00:00:00Z",
}


@pytest.mark.parametrize(("places", "hanging"), [(64, 8), (8, 7)])
async def test_a_hanging_provider_delays_nobody_else(
    daemon: Tokenward, places: int, hanging: int
) -> None:
    """While all it can take hangs at one provider, another's callers get their first tokens."""
    async with TokenServer() as slow, TokenServer() as fast:
        slow.answer = writes_then_waits(b"")
        daemon.settings["refresh"] = {"concurrency": places}
        daemon.settings["providers"] = {
            "slow": slow.provider(rate="1000/s"),
            "fast": fast.provider(),
        }
        async with daemon:
            for number in range(40):
                await daemon.create("slow", id=f"slow-{number}", tokens=EXPIRED)
            waiting = [asyncio.create_task(daemon.token(f"slow-{n}")) for n in range(40)]

            async def all_places_hang() -> bool:
                metrics = await daemon.metrics()
                return metrics['tokenward_refreshes_in_flight{provider="slow"}'] == hanging

            await eventually(all_places_hang, what="the hanging requests")
            for number in range(8):
                await daemon.create("fast", id=f"fast-{number}", tokens=EXPIRED)
                assert (await daemon.token(f"fast-{number}")).status == 200
            done = [task for task in waiting if task.done()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            # Nothing of it is worth the grace that a stop would give.
            daemon.signal(signal.SIGKILL)
        assert done == []


async def test_many_callers_of_one_expired_token_cost_one_request(daemon: Tokenward) -> None:
    """300 callers at once cause one token request and all get its token."""
    arrived = asyncio.Event()
    sent = 0

    async def count(*_: object) -> None:
        nonlocal sent
        sent += 1
        if sent == 300:
            arrived.set()

    trace = TraceConfig()
    trace.on_request_headers_sent.append(count)
    async with TokenServer() as server:

        async def hold(wire: Wire) -> None:
            await arrived.wait()
            await server.grant(wire)

        server.answer = hold
        daemon.settings["providers"] = {"acme": server.provider()}
        async with (
            daemon,
            ClientSession(connector=TCPConnector(limit=0), trace_configs=[trace]) as session,
        ):
            await daemon.create("acme", id="acme-1", tokens=EXPIRED)
            headers = {"Authorization": f"Bearer {daemon.key}"}

            async def read() -> tuple[int, str]:
                url = f"{daemon.api_url}/v1/connections/acme-1/token"
                async with session.get(url, headers=headers) as answer:
                    return answer.status, (await answer.json())["access_token"]

            replies = await asyncio.gather(*(read() for _ in range(300)))
        assert set(replies) == {(200, "access-1")}
        assert server.sends() == {"old": 1}
