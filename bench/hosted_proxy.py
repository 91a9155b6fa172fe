"""The proxy on its listener, with one token in memory and no database behind it.

Arguments: the API's port and the token. The caller's key is that of the tests' stage. First line
out: the listener's port.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace
from datetime import timedelta
from typing import cast

import uvloop
from prometheus_client import CollectorRegistry

from bench.processes import answer_lines
from daemon.config.settings import Address
from daemon.domain.clock import SystemClock
from daemon.domain.connection import Status
from daemon.domain.tokens import CurrentToken
from daemon.oauth.api_session import ApiSession
from daemon.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.proxy_stage import MemoryConnections, listener_for, provider
from tests.support.refreshing import Replica


async def _main(port: int, token: str) -> None:
    configured = replace(provider(f"http://127.0.0.1:{port}"), concurrency=8)
    clock = SystemClock()
    here = Replica(providers={"acme": configured}, clock=cast("FakeClock", clock))
    here.cache.put(
        CurrentToken(
            connection="acme-1",
            provider="acme",
            status=Status.ACTIVE,
            generation=1,
            access_token=token,
            token_type="Bearer",  # noqa: S106 - RFC 6750's name of the type
            scopes=(),
            issued_at=clock.now(),
            expires_at=clock.now() + timedelta(days=1),
            refreshable=True,
        )
    )
    metrics = Metrics(CollectorRegistry(), providers=["acme"], clock=clock, version="bench")
    async with ApiSession() as api:
        listener = listener_for(
            here, MemoryConnections(here), api, count=metrics.count_proxy_request
        )
        await listener.start(address=Address("127.0.0.1", 0))
        # As the daemon does once it has started.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)

        async def pong(_: object) -> object:
            return {}

        await answer_lines(pong, first={"port": listener.addresses[0].port})
        await listener.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(_main(int(sys.argv[1]), sys.argv[2]))
