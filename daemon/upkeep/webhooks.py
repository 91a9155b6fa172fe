"""[tell] Delivers events to the operator's webhook, signed as Standard Webhooks, at least once.

The one hard idea: the table is the memory. What a crash or a lost answer leaves open is sent again
under the same ``webhook-id``, by which the receiver knows it.
"""

from __future__ import annotations

import asyncio
import hmac
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from http import HTTPStatus
from typing import Protocol

import orjson

from daemon.config.settings import Webhook
from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.event_body import event_body, event_name
from daemon.domain.events import Events
from daemon.domain.history import Event
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.api_session import ApiRequest
from daemon.oauth.retry_after import retry_after
from daemon.oauth.token_request import USER_AGENT
from daemon.persistence.background import pause
from daemon.persistence.deliveries import Delivered, Delivery, DeliveryState

# The Standard Webhooks schedule: the pause after each failed try, and the last word after the last.
_PAUSES = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
# A tenth more by chance: what failed together does not come back together.
_SPREAD = 0.1
_TIMEOUT = 15.0
# One round of requests per claim, well within the hold.
_BATCH = 16
_HOLD = timedelta(seconds=60)
# The most that an event which another replica recorded waits for this one.
_LONGEST_SLEEP = 2.0
_DATABASE_AWAY = 2.0
# A webhook that took nothing of a whole batch is left alone for a moment.
_NOBODY_HOME = 5.0
_SUCCESSES = range(200, 300)


class Posts(Protocol):
    """What sends: ``daemon.oauth.api_session.ApiSession``."""

    async def send(self, request: ApiRequest, *, hard_timeout: float) -> RawReply | NoReply:
        """Send once; never raises for what a server or network does."""


class Deliveries(Protocol):
    """The table: ``daemon.persistence.deliveries.PostgresDeliveries``."""

    async def claim(self, *, now: datetime, hold: timedelta, limit: int) -> list[Delivery]:
        """Return what is due, each hidden from others for ``hold``."""

    async def settle(self, ends: Sequence[Delivered], *, now: datetime) -> None:
        """Store how tries ended."""

    async def next_at(self) -> datetime | None:
        """Return when the next delivery is due; ``None`` where nothing is pending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedEvent:
    """What is posted. The signature is not a secret; without the secret nobody makes another."""

    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def sign(event: Event, secret: bytes, *, now: datetime) -> SignedEvent:
    """Return an event's body and headers (Standard Webhooks 1.0). Pure.

    ``webhook-id`` stays the same over all tries, ``webhook-timestamp`` is that of this one.
    """
    body = orjson.dumps(event_body(event))
    name, timestamp = event_name(event.id), str(int(now.timestamp()))
    signed = b".".join((name.encode(), timestamp.encode(), body))
    signature = b64encode(hmac.new(secret, signed, sha256).digest()).decode()
    headers = {
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": name,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }
    return SignedEvent(headers=headers, body=body)


def judge(
    delivery: Delivery, reply: RawReply | NoReply, *, now: datetime, chance: float
) -> Delivered:
    """Return what a reply makes of a delivery; ``chance`` is in [0, 1). Pure.

    2xx is delivered, 410 means that nobody wants it any more, all else is tried again until the
    schedule ends; ``Retry-After`` only makes a pause longer.
    """
    number, status = delivery.event.id, None
    wait: float | None = None
    if isinstance(reply, RawReply):
        status = reply.status
        if status in _SUCCESSES:
            return Delivered(event_id=number, state=DeliveryState.DELIVERED, status=status)
        wait = retry_after(reply.headers.get("retry-after"), reply.headers.get("date"), now)
    error = _explained(reply)
    is_over = delivery.attempts >= len(_PAUSES) or status == HTTPStatus.GONE
    if is_over:
        return Delivered(event_id=number, state=DeliveryState.DEAD, status=status, error=error)
    seconds = _PAUSES[delivery.attempts] * (1.0 + _SPREAD * chance)
    next_at = now + timedelta(seconds=max(seconds, wait or 0.0))
    return Delivered(
        event_id=number, state=DeliveryState.PENDING, next_at=next_at, status=status, error=error
    )


def _explained(reply: RawReply | NoReply) -> str:
    """Return why an event was not taken; the URL, as good as a secret, is not in it."""
    if isinstance(reply, RawReply):
        if reply.status == HTTPStatus.GONE:
            return "The webhook wants no more events (410)."
        return f"The webhook answered with status {reply.status} instead of 2xx."
    if reply.fault is Fault.ADDRESS:
        return (
            "The webhook's host has no address that may be reached. Correct "
            "events.webhook.url, or set events.webhook.allow_private_hosts."
        )
    return f"The webhook did not answer ({reply.fault.value})."


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookParts:
    """What delivering works with.

    ``webhook`` gives the one configured now, or ``None``: then events wait, as long as they are
    kept. ``chance`` returns a number in [0, 1).
    """

    deliveries: Deliveries
    session: Posts
    webhook: Callable[[], Webhook | None]
    events: Events
    clock: Clock
    chance: Callable[[], float]


class Webhooks:
    """Delivers for as long as it runs."""

    def __init__(self, parts: WebhookParts) -> None:
        self._parts = parts
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look soon: something was recorded, or the configuration changed."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled. What was in flight then is sent again a minute later."""
        while True:
            try:
                wait = await self._once()
            except DatabaseUnavailableError:
                wait = _DATABASE_AWAY
            await pause(self._parts.clock, wait, self._woken)
            self._woken.clear()

    async def _once(self) -> float:
        """Deliver one batch; return the seconds until the next look."""
        parts, webhook = self._parts, self._parts.webhook()
        if webhook is None:
            return _LONGEST_SLEEP
        now = parts.clock.now()
        claimed = await parts.deliveries.claim(now=now, hold=_HOLD, limit=_BATCH)
        if not claimed:
            due = await parts.deliveries.next_at()
            wait = _LONGEST_SLEEP if due is None else (due - now).total_seconds()
            return min(max(wait, 0.0), _LONGEST_SLEEP)
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(self._deliver(webhook, one)) for one in claimed]
        ends = [each.result() for each in tries]
        await parts.deliveries.settle(ends, now=parts.clock.now())
        for delivery, end in zip(claimed, ends, strict=True):
            self._tell(delivery, end)
        took_any = any(end.state is DeliveryState.DELIVERED for end in ends)
        return 0.0 if took_any else _NOBODY_HOME

    async def _deliver(self, webhook: Webhook, delivery: Delivery) -> Delivered:
        clock = self._parts.clock
        signed = sign(delivery.event, webhook.secret, now=clock.now())
        request = ApiRequest(
            method="POST",
            url=webhook.url,
            headers=signed.headers,
            body=signed.body,
            allow_private_hosts=webhook.allow_private_hosts,
        )
        reply = await self._parts.session.send(request, hard_timeout=_TIMEOUT)
        return judge(delivery, reply, now=clock.now(), chance=self._parts.chance())

    def _tell(self, delivery: Delivery, end: Delivered) -> None:
        events, attempts = self._parts.events, delivery.attempts + 1
        name, connection = event_name(end.event_id), delivery.event.connection
        error = end.error or ""
        if end.state is DeliveryState.DELIVERED:
            events.webhook_delivered(name, connection, attempts=attempts)
        elif end.next_at is None:
            events.webhook_delivery_dead(name, connection, attempts=attempts, error=error)
        else:
            retry_in = (end.next_at - self._parts.clock.now()).total_seconds()
            events.webhook_delivery_failed(
                name, connection, attempts=attempts, error=error, retry_in=retry_in
            )
