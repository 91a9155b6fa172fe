"""What the webhook gets, when it gets it again, and when nobody tries any more."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Receiver
from standardwebhooks import WebhookVerificationError

from daemon.config.settings import Webhook
from daemon.domain.clock import SystemClock
from daemon.domain.event_body import event_body
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.api_session import ApiRequest
from daemon.persistence.deliveries import Delivery, DeliveryState
from daemon.upkeep.webhooks import WebhookParts, Webhooks, judge, sign
from tests.support.clock import FakeClock
from tests.support.memory_history import MemoryDeliveries, event
from tests.support.refreshing import RecordedEvents
from tests.support.telemetry import CANARY, NOW

SECRET = f"{CANARY}-of-24-bytes-or-more".encode()
WEBHOOK = Webhook(url="https://hooks.example/tokenward", secret=SECRET)
OK = RawReply(status=204, headers={}, body=b"")
DOWN = NoReply(sent=False, fault=Fault.CONNECT)
# Standard Webhooks, "Deliverability and reliability".
SCHEDULE = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]


@dataclass
class Receivers:
    """Port: Posts. Answers in order, then ``otherwise``."""

    otherwise: RawReply | NoReply = OK
    answers: list[RawReply | NoReply] = field(default_factory=list)
    sent: list[ApiRequest] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, request: ApiRequest, *, hard_timeout: float) -> RawReply | NoReply:
        """Record a request."""
        assert hard_timeout == 15
        self.sent.append(request)
        await self.gate.wait()
        return self.answers.pop(0) if self.answers else self.otherwise


class Stage:
    """A table, a webhook, and the worker between them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.deliveries = MemoryDeliveries()
        self.receiver = Receivers()
        self.receiver.gate.set()
        self.events = RecordedEvents()
        self.webhook: Webhook | None = WEBHOOK
        self.webhooks = Webhooks(
            WebhookParts(
                deliveries=self.deliveries,
                session=self.receiver,
                webhook=lambda: self.webhook,
                events=self.events,
                clock=self.clock,
                chance=lambda: 0.0,
            )
        )

    async def run_for(self, *steps: float) -> None:
        """Run the worker, and let each of these times pass."""
        task = asyncio.create_task(self.webhooks.run())
        await self.clock.settle()
        for seconds in steps:
            self.clock.advance(seconds)
            await self.clock.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def stage() -> Stage:
    """Return a stage with one event to deliver."""
    stage = Stage()
    stage.deliveries.put(event(7))
    return stage


def receive(request: ApiRequest, secret: bytes = SECRET) -> Any:
    """Return what a receiver makes of a request; raises where its signature is wrong."""
    return Receiver(b64encode(secret).decode()).verify(request.body, dict(request.headers))


def test_a_receiver_verifies_it() -> None:
    """Standard Webhooks: the published library accepts it, and refuses what was changed."""
    signed = sign(event(7), SECRET, now=SystemClock().now())
    request = ApiRequest(method="POST", url=WEBHOOK.url, headers=signed.headers, body=signed.body)
    assert receive(request) == event_body(event(7))
    with pytest.raises(WebhookVerificationError):
        receive(request, b"another secret of 24 bytes")
    with pytest.raises(WebhookVerificationError):
        receive(ApiRequest(method="POST", url="", headers=signed.headers, body=signed.body + b" "))
    assert CANARY not in repr(signed) + repr(request) + repr(WEBHOOK)


def test_the_id_stays_and_the_time_does_not() -> None:
    """By its id a receiver knows what it has; by the time it refuses what is old."""
    first = sign(event(7), SECRET, now=NOW).headers
    second = sign(event(7), SECRET, now=NOW + timedelta(minutes=5)).headers
    assert first["webhook-id"] == second["webhook-id"] == "evt_7"
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 300
    assert first["webhook-signature"] != second["webhook-signature"]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_taken(status: int) -> None:
    """Any 2xx is delivered."""
    end = judge(
        Delivery(event=event(7), attempts=3),
        RawReply(status=status, headers={}, body=b""),
        now=NOW,
        chance=0.5,
    )
    assert (end.state, end.status, end.next_at) == (DeliveryState.DELIVERED, status, None)


@pytest.mark.parametrize("status", [100, 300, 301, 302, 307, 400, 401, 404, 408, 429, 500, 503])
@pytest.mark.parametrize("attempts", range(10))
def test_not_taken(status: int, attempts: int) -> None:
    """Everything else, a redirect too, comes again on schedule, ten times in all."""
    reply = RawReply(status=status, headers={}, body=SECRET)
    end = judge(Delivery(event=event(7), attempts=attempts), reply, now=NOW, chance=0.0)
    assert str(status) in (end.error or "")
    if attempts == len(SCHEDULE):
        assert (end.state, end.next_at) == (DeliveryState.DEAD, None)
    else:
        wait = timedelta(seconds=SCHEDULE[attempts])
        assert (end.state, end.next_at) == (DeliveryState.PENDING, NOW + wait)


@pytest.mark.parametrize("fault", list(Fault))
def test_no_answer(fault: Fault) -> None:
    """Whatever went wrong on the way, it comes again; a forbidden address says what to do."""
    reply = NoReply(sent=True, fault=fault)
    end = judge(Delivery(event=event(7), attempts=0), reply, now=NOW, chance=0.0)
    assert end.state is DeliveryState.PENDING
    assert end.error
    assert ("allow_private_hosts" in end.error) is (fault is Fault.ADDRESS)


def test_nobody_wants_it() -> None:
    """410 is an answer for good."""
    reply = RawReply(status=410, headers={}, body=b"")
    end = judge(Delivery(event=event(7), attempts=0), reply, now=NOW, chance=0.0)
    assert (end.state, end.status) == (DeliveryState.DEAD, 410)


@given(attempts=st.integers(0, 8), chance=st.floats(0, 1, exclude_max=True))
def test_the_pauses_spread(attempts: int, chance: float) -> None:
    """Up to a tenth longer than the schedule, never shorter."""
    end = judge(Delivery(event=event(7), attempts=attempts), DOWN, now=NOW, chance=chance)
    assert end.next_at is not None
    seconds = (end.next_at - NOW).total_seconds()
    assert SCHEDULE[attempts] - 1e-6 <= seconds <= SCHEDULE[attempts] * 1.1


def test_a_receiver_may_ask_for_more_time() -> None:
    """Retry-After makes a pause longer, never shorter."""
    waits = []
    for seconds in ("120", "1"):
        reply = RawReply(status=429, headers={"retry-after": seconds}, body=b"")
        end = judge(Delivery(event=event(7), attempts=0), reply, now=NOW, chance=0.0)
        assert end.next_at is not None
        waits.append((end.next_at - NOW).total_seconds())
    assert waits == [120, 5]


async def test_delivered(stage: Stage) -> None:
    """One request, and it is done and told."""
    await stage.run_for(100)
    (request,) = stage.receiver.sent
    assert (request.method, request.url) == ("POST", WEBHOOK.url)
    assert json.loads(request.body) == event_body(event(7))
    assert not request.allow_private_hosts
    assert stage.deliveries.ended[7].state is DeliveryState.DELIVERED
    assert stage.events.told == [("webhook_delivered", "evt_7", {"attempts": 1})]


async def test_a_webhook_that_is_down(stage: Stage) -> None:
    """Ten tries over three days, then a dead letter, told as a warning."""
    stage.receiver.otherwise = DOWN
    await stage.run_for(*(second for pause in SCHEDULE for second in (pause, 5)))
    assert len(stage.receiver.sent) == 10
    assert stage.events.names == ["webhook_delivery_failed"] * 9 + ["webhook_delivery_dead"]
    assert stage.deliveries.ended[7].state is DeliveryState.DEAD
    assert stage.deliveries.pending == {}


async def test_a_webhook_that_comes_back(stage: Stage) -> None:
    """What failed arrives under the same id when its time has come."""
    stage.receiver.answers = [DOWN]
    await stage.run_for(5, 5)
    assert [one.headers["webhook-id"] for one in stage.receiver.sent] == ["evt_7", "evt_7"]
    assert stage.deliveries.ended[7].state is DeliveryState.DELIVERED


async def test_without_a_webhook_events_wait(stage: Stage) -> None:
    """Nothing is sent until one is configured; a reload is enough."""
    stage.webhook = None
    await stage.run_for(100)
    assert stage.receiver.sent == []
    stage.webhook = Webhook(url="http://10.0.0.1/", secret=SECRET, allow_private_hosts=True)
    await stage.run_for()
    (request,) = stage.receiver.sent
    assert (request.url, request.allow_private_hosts) == ("http://10.0.0.1/", True)


async def test_a_backlog_is_worked_off_at_once(stage: Stage) -> None:
    """A batch follows the other without a pause while the webhook takes them."""
    stage.deliveries.put(*(event(number) for number in range(8, 100)))
    await stage.run_for()
    await stage.run_for()
    await stage.run_for()
    assert len(stage.deliveries.ended) == 93
    assert stage.clock.elapsed == 0


async def test_a_new_event_does_not_wait(stage: Stage) -> None:
    """Whoever recorded it may wake the worker; else it looks every two seconds."""
    task = asyncio.create_task(stage.webhooks.run())
    await stage.clock.settle()
    stage.deliveries.put(event(8))
    stage.webhooks.wake()
    await stage.clock.settle()
    stage.deliveries.put(event(9))
    stage.clock.advance(2)
    await stage.clock.settle()
    assert sorted(stage.deliveries.ended) == [7, 8, 9]
    task.cancel()


async def test_the_database_may_be_away(stage: Stage) -> None:
    """A result that could not be stored is sent again when the hold is over."""
    stage.receiver.gate.clear()
    task = asyncio.create_task(stage.webhooks.run())
    await stage.clock.settle()
    stage.deliveries.is_away = True
    stage.receiver.gate.set()
    await stage.clock.settle()
    assert stage.events.names == []
    stage.deliveries.is_away = False
    for _ in range(31):
        stage.clock.advance(2)
        await stage.clock.settle()
    assert len(stage.receiver.sent) == 2
    assert stage.deliveries.ended[7].state is DeliveryState.DELIVERED
    task.cancel()


async def test_a_cancelled_worker_loses_nothing(stage: Stage) -> None:
    """What was in flight is still pending."""
    stage.receiver.gate.clear()
    await stage.run_for()
    assert list(stage.deliveries.pending) == [7]
