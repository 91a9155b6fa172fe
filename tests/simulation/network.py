"""The way to the provider and back, with everything that can happen to a request on it.

What the provider does it does whatever becomes of the process that asked: its commit and the
way of its reply are nobody's task.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - a simulation's chance is its seed
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from urllib.parse import parse_qs

import orjson

from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.oauth.outbound import MaySend
from daemon.oauth.patience import patience
from tests.simulation.books import Books, Send
from tests.simulation.loop import Life, SimulatedLoop
from tests.simulation.machines import Machine
from tests.simulation.provider_model import ProviderModel, Reply
from tests.simulation.trace import Trace

_JSON = {"content-type": "application/json"}


class RequestFault(Enum):
    """What goes wrong with one request."""

    REFUSED_CONNECTION = auto()
    SLOW_CONNECTION = auto()
    """Connecting takes so long that sending may not be safe any more."""
    RESET_BEFORE = auto()
    """The request is lost; the provider never sees it."""
    DROPPED_AFTER = auto()
    """The provider commits, then the connection breaks."""
    SLOW = auto()
    """The provider commits, its reply comes when nobody waits any more."""
    PROCESSED_LATE = auto()
    """The provider looks at the request only when nobody waits any more."""
    ERROR_BEFORE = auto()
    """503 with Retry-After, and nothing was done."""
    ERROR_AFTER = auto()
    """502 of a gateway, and the provider has committed."""
    TRUNCATED = auto()
    """Half of the reply, which looks whole to HTTP."""
    TEMPORARILY_UNAVAILABLE = auto()
    RATE_LIMITED = auto()
    INVALID_CLIENT = auto()
    UNUSABLE_TYPE = auto()
    """A reply whose access token cannot be used; its refresh token is in force all the same."""


_NOT_PROCESSED = {
    RequestFault.ERROR_BEFORE: RawReply(status=503, headers={"retry-after": "3"}, body=b""),
    RequestFault.TEMPORARILY_UNAVAILABLE: RawReply(
        status=400, headers=_JSON, body=b'{"error":"temporarily_unavailable"}'
    ),
    RequestFault.RATE_LIMITED: RawReply(status=429, headers={"retry-after": "5"}, body=b""),
    RequestFault.INVALID_CLIENT: RawReply(
        status=401, headers=_JSON, body=b'{"error":"invalid_client"}'
    ),
}
_SAYS_UNSPENT = {
    RequestFault.TEMPORARILY_UNAVAILABLE,
    RequestFault.RATE_LIMITED,
    RequestFault.INVALID_CLIENT,
}
_WIRE_LOSSES = {
    RequestFault.DROPPED_AFTER,
    RequestFault.SLOW,
    RequestFault.PROCESSED_LATE,
    RequestFault.ERROR_AFTER,
    RequestFault.TRUNCATED,
}


@dataclass(kw_only=True)
class Network:
    """What all requests share. ``outages`` counts what keeps the provider away now, ``overtaken``
    has by machine by how many seconds its next request comes late, with its sender standing still.
    """

    loop: SimulatedLoop
    provider: ProviderModel
    books: Books
    trace: Trace
    chance: random.Random
    lifetime: float
    fault: Callable[[], RequestFault | None]
    outages: int = 0
    overtaken: dict[str, float] = field(default_factory=dict)

    def process(
        self, value: str, fault: RequestFault | None, *, is_late: bool
    ) -> tuple[RawReply, Reply | None]:
        """Let the provider answer a refresh request (RFC 6749 5)."""
        now = self.loop.time()
        reply, is_reuse = self.provider.refresh(value, lifetime=self.lifetime, now=now)
        if is_reuse:
            self.trace.tell("provider", f"REUSE of {value}")
            self.trace.count("provider: reuse")
            self.books.reused(value, now, is_late=is_late)
        elif reply is None:
            self.books.passed_over(value, now)
        elif value in self.books.adopted:
            self.trace.count("branch: an orphan was good")
        if reply is None:
            self.trace.tell("provider", f"invalid_grant for {value}")
            self.trace.count("provider: invalid_grant")
            return RawReply(status=400, headers=_JSON, body=b'{"error":"invalid_grant"}'), None
        self.trace.tell("provider", f"{value} -> {reply.refresh_token} (reply {reply.number})")
        self.trace.count("provider: granted")
        return _granted(reply, fault), reply


@dataclass(kw_only=True)
class Exchange:
    """One request on its way. ``answer`` is what its sender waits for."""

    network: Network
    value: str
    fault: RequestFault | None
    send: Send
    answer: asyncio.Future[tuple[RawReply, Reply | None] | None]
    is_overtaken: bool = False

    def arrive(self) -> None:
        """Let the request reach the provider."""
        network, fault = self.network, self.fault
        way_back = network.chance.uniform(0.005, 0.3)
        if fault is RequestFault.RESET_BEFORE:
            network.loop.outside(way_back, self._tell, None)
        elif fault in _NOT_PROCESSED:
            self.send.is_unspent = fault in _SAYS_UNSPENT
            network.loop.outside(way_back, self._tell, (_NOT_PROCESSED[fault], None))
        else:
            is_late = fault is RequestFault.PROCESSED_LATE or self.is_overtaken
            told = network.process(self.value, fault, is_late=is_late)
            if fault is RequestFault.DROPPED_AFTER:
                network.loop.outside(way_back, self._tell, None)
            elif fault is RequestFault.ERROR_AFTER:
                bad_gateway = RawReply(status=502, headers={}, body=b"")
                network.loop.outside(way_back, self._tell, (bad_gateway, None))
            elif fault is RequestFault.TRUNCATED:
                network.loop.outside(way_back, self._tell, (told[0], None))
            elif fault is not RequestFault.SLOW:
                network.loop.outside(way_back, self._tell, told)

    def _tell(self, told: tuple[RawReply, Reply | None] | None) -> None:
        if not self.answer.done():
            self.answer.set_result(told)


class ProcessSession:
    """Port: ``TokenSession``, of one process."""

    def __init__(self, network: Network, machine: Machine, life: Life, owner: str) -> None:
        self._network = network
        self._machine = machine
        self._life = life
        self._owner = owner

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        hard_timeout: float,
        may_send: MaySend | None = None,
    ) -> RawReply | NoReply:
        """Send once."""
        del url, headers
        network, clock = self._network, self._machine.clock
        ends_at, error = clock.boottime() + hard_timeout, clock.error
        fault = network.fault()
        if fault is not None:
            network.trace.count(f"fault: request {fault.name.lower()}")
        if not await self._connected(fault, hard_timeout):
            return NoReply(sent=False, fault=Fault.CONNECT)
        if may_send is not None and not await may_send():
            network.trace.count("branch: too late to send")
            return NoReply(sent=False, fault=Fault.LATE)
        value = parse_qs(body.decode())["refresh_token"][0]
        if self._machine.name in network.overtaken:
            exchange = self._leave_and_stand_still(value, hard_timeout)
        else:
            exchange = self._leave(value, fault, hard_timeout)
        try:
            left = max(0.0, ends_at - clock.boottime())
            async with patience(left, has_sent=lambda: True):
                told = await exchange.answer
        except TimeoutError:
            return NoReply(sent=True, fault=Fault.TIMEOUT)
        if told is None:
            return NoReply(sent=True, fault=Fault.DISCONNECTED)
        raw, reply = told
        if reply is not None:
            reply.sent_error = max(error, clock.error)
            network.books.delivered(reply, exchange.send.attempt, self._life)
            network.trace.tell(self._life.name, f"received reply {reply.number}")
        return raw

    async def _connected(self, fault: RequestFault | None, hard_timeout: float) -> bool:
        network = self._network
        if network.outages > 0 or fault is RequestFault.REFUSED_CONNECTION:
            await asyncio.sleep(network.chance.uniform(0.001, 0.05))
            return False
        takes = network.chance.uniform(0.002, 0.05)
        if fault is RequestFault.SLOW_CONNECTION:
            takes = network.chance.uniform(0.3, 1.0) * min(hard_timeout, 40.0)
        await asyncio.sleep(takes)
        return True

    def _leave_and_stand_still(self, value: str, hard_timeout: float) -> Exchange:
        """Send what will be overtaken, and then nothing until its reply is there."""
        network, life, machine = self._network, self._life, self._machine
        behind = network.overtaken.pop(machine.name)
        exchange = self._leave(value, None, hard_timeout, behind=behind)
        network.loop.outside(0.0, network.loop.halt, life)

        def resume() -> None:
            if life.is_alive and not life.is_running:
                machine.back_since = network.loop.time()
                network.loop.resume(life)

        network.loop.outside(behind + network.chance.uniform(0.5, 3.0), resume)
        return exchange

    def _leave(
        self,
        value: str,
        fault: RequestFault | None,
        hard_timeout: float,
        *,
        behind: float | None = None,
    ) -> Exchange:
        network = self._network
        now = network.loop.time()
        send = network.books.leaving(value, self._owner, self._machine, now)
        network.trace.tell(
            self._life.name,
            f"sends {value} for {send.attempt}{'' if fault is None else ' ' + fault.name}",
        )
        network.trace.count("sends")
        if fault in _WIRE_LOSSES:
            network.trace.count("lost on the wire")
        exchange = Exchange(
            network=network,
            value=value,
            fault=fault,
            send=send,
            answer=network.loop.create_future(),
            is_overtaken=behind is not None,
        )
        delay = network.chance.uniform(0.005, 0.3) if behind is None else behind
        if fault is RequestFault.PROCESSED_LATE:
            delay = hard_timeout * network.chance.uniform(0.9, 1.2)
        network.loop.outside(delay, exchange.arrive)
        return exchange


def _granted(reply: Reply, fault: RequestFault | None) -> RawReply:
    whole = granted(reply, is_usable=fault is not RequestFault.UNUSABLE_TYPE)
    if fault is RequestFault.TRUNCATED:
        return replace(whole, body=whole.body[: len(whole.body) // 2])
    return whole


def granted(reply: Reply, *, is_usable: bool = True) -> RawReply:
    """Return a reply's bytes (RFC 6749 5.1)."""
    members: dict[str, object] = {
        "access_token": reply.access_token,
        "token_type": "Bearer" if is_usable else "mac",
        "expires_in": int(reply.lifetime),
        "refresh_token": reply.refresh_token,
    }
    return RawReply(status=200, headers=_JSON, body=orjson.dumps(members))
