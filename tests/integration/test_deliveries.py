"""Deliveries in PostgreSQL, and on their way to a real webhook."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from aiohttp import web
from standardwebhooks import Webhook as Receiver

from daemon.config.settings import Webhook
from daemon.domain.clock import SystemClock
from daemon.domain.history import EventType, NewEvent
from daemon.oauth.api_session import ApiSession
from daemon.persistence.deliveries import Delivered, DeliveryState, PostgresDeliveries
from daemon.persistence.history import EventRecorder, PostgresHistory
from daemon.persistence.postgres import Database
from daemon.upkeep.webhooks import WebhookParts, Webhooks
from tests.support.clock import START
from tests.support.refreshing import RecordedEvents
from tests.support.waiting import until

HOLD = timedelta(seconds=60)
SECRET = b"a secret of some 24 bytes"
CREATED = NewEvent(type=EventType.CREATED, connection="a", provider="acme", at=START)


@pytest.fixture
async def deliveries(database: Database) -> PostgresDeliveries:
    """Three events to deliver."""
    history = PostgresHistory(database, EventRecorder(delivers=lambda: True))
    await history.record([replace(CREATED, connection=name) for name in "abc"])
    return PostgresDeliveries(database)


async def test_what_is_due_is_claimed_once(deliveries: PostgresDeliveries) -> None:
    """Oldest first, up to the limit, and hidden from others until the hold is over."""
    assert await deliveries.claim(now=START - timedelta(seconds=1), hold=HOLD, limit=9) == []
    first = await deliveries.claim(now=START, hold=HOLD, limit=2)
    second = await deliveries.claim(now=START, hold=HOLD, limit=9)
    assert [one.event.connection for one in (*first, *second)] == ["a", "b", "c"]
    assert {one.attempts for one in first} == {0}
    assert await deliveries.claim(now=START, hold=HOLD, limit=9) == []
    assert await deliveries.next_at() == START + HOLD
    assert len(await deliveries.claim(now=START + HOLD, hold=HOLD, limit=9)) == 3


async def test_replicas_share_the_work(deliveries: PostgresDeliveries) -> None:
    """Claims at the same time never give out the same event."""
    claims = await asyncio.gather(
        *(deliveries.claim(now=START, hold=HOLD, limit=1) for _ in range(5))
    )
    ids = [one.event.id for claim in claims for one in claim]
    assert len(ids) == len(set(ids))
    await deliveries.settle([], now=START)


async def test_how_tries_end(database: Database, deliveries: PostgresDeliveries) -> None:
    """Delivered and dead ones are over, what failed is due again; all of it stays visible."""
    a, b, c = await deliveries.claim(now=START, hold=HOLD, limit=9)
    later = START + timedelta(minutes=5)
    await deliveries.settle(
        [
            Delivered(event_id=a.event.id, state=DeliveryState.DELIVERED, status=204),
            Delivered(
                event_id=b.event.id,
                state=DeliveryState.PENDING,
                next_at=later,
                error="No answer.",
            ),
            Delivered(event_id=c.event.id, state=DeliveryState.DEAD, status=410, error="Gone."),
        ],
        now=START,
    )
    assert await deliveries.next_at() == later
    (again,) = await deliveries.claim(now=later, hold=HOLD, limit=9)
    assert (again.event, again.attempts) == (b.event, 1)
    (letter,) = await deliveries.dead_letters(limit=9)
    assert (letter.event, letter.attempts, letter.status, letter.error, letter.ended_at) == (
        c.event,
        1,
        410,
        "Gone.",
        START,
    )
    assert set((await deliveries.counts()).values()) == {1}
    rows = await database.fetch("SELECT last_status, last_error FROM webhook_deliveries ORDER BY 1")
    assert len(rows) == 3


async def test_an_end_is_final(deliveries: PostgresDeliveries) -> None:
    """A slow replica's result does not bring back what another one has ended."""
    a, *_ = await deliveries.claim(now=START, hold=HOLD, limit=9)
    await deliveries.settle(
        [Delivered(event_id=a.event.id, state=DeliveryState.DELIVERED, status=200)], now=START
    )
    failed = Delivered(event_id=a.event.id, state=DeliveryState.DEAD, error="Late.")
    await deliveries.settle([failed], now=START)
    assert (await deliveries.counts())[DeliveryState.DEAD] == 0


class Hooks:
    """A webhook's server; ``statuses`` are answered in turn, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.port = 0

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Keep the request."""
        self.received.append((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)


@pytest.fixture
async def hooks() -> AsyncIterator[Hooks]:
    """Return a webhook's server."""
    hooks = Hooks()
    runner = web.ServerRunner(web.Server(hooks.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hooks.port = runner.addresses[0][1]
    yield hooks
    await runner.cleanup()


async def _deliver(
    deliveries: PostgresDeliveries, webhook: Webhook, events: RecordedEvents, count: int
) -> None:
    async with ApiSession() as session:
        parts = WebhookParts(
            deliveries=deliveries,
            session=session,
            webhook=lambda: webhook,
            events=events,
            clock=SystemClock(),
            chance=lambda: 0.0,
        )
        task = asyncio.create_task(Webhooks(parts).run())
        await until(lambda: len(events.told) >= count)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_real_webhook(deliveries: PostgresDeliveries, hooks: Hooks) -> None:
    """Each event arrives, signed, and what was refused stays for later."""
    hooks.statuses = [500]
    webhook = Webhook(
        url=f"http://127.0.0.1:{hooks.port}/in?key=1", secret=SECRET, allow_private_hosts=True
    )
    events = RecordedEvents()
    await _deliver(deliveries, webhook, events, 3)
    receiver = Receiver(b64encode(SECRET).decode())
    bodies = [receiver.verify(body, headers) for headers, body in hooks.received]
    assert sorted(body["connection"] for body in bodies) == ["a", "b", "c"]
    assert {headers["webhook-id"] for headers, _ in hooks.received} == {
        json.loads(body)["id"] for _, body in hooks.received
    }
    assert sorted(events.names) == ["webhook_delivered"] * 2 + ["webhook_delivery_failed"]
    counts = await deliveries.counts()
    assert (counts[DeliveryState.DELIVERED], counts[DeliveryState.PENDING]) == (2, 1)


async def test_a_private_address_is_not_reached(
    deliveries: PostgresDeliveries, hooks: Hooks
) -> None:
    """A webhook's address is checked as any other; the refusal says what to do."""
    webhook = Webhook(url=f"http://127.0.0.1:{hooks.port}/in", secret=SECRET)
    events = RecordedEvents()
    await _deliver(deliveries, webhook, events, 3)
    assert hooks.received == []
    assert set(events.names) == {"webhook_delivery_failed"}
    assert "allow_private_hosts" in str(events.told[0][2]["error"])
