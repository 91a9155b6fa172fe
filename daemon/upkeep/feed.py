"""[tell] What happens from now on, for everybody who listens: one tail per process, many streams.

The one hard idea: joining without a gap. A stream first reads what it has missed by a tail of its
own, and joins the common one at the very moment when it is not behind it any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError, TokenwardError
from daemon.domain.event_body import event_body, event_name
from daemon.domain.history import Event, History
from daemon.persistence.background import pause
from daemon.persistence.history import EventTail

# Each is a socket and up to a thousand messages; operators have a handful.
LARGEST_AUDIENCE = 100
# Messages that wait for a slow reader: minutes of a busy daemon. Then it is cut, and comes back
# with its Last-Event-ID.
_BACKLOG = 1000
_POLL = 0.5
_DATABASE_AWAY = 2.0


class FeedClosedError(TokenwardError):
    """No stream can be opened now: too many are, or the daemon is stopping."""


@dataclass(frozen=True, slots=True)
class Message:
    """An event as server-sent event (HTML 9.2.6). ``number`` is its id."""

    number: int
    data: bytes


def message_of(event: Event) -> Message:
    """Return an event's message. JSON has no line breaks, so it is one ``data`` line. Pure."""
    name, body = event_name(event.id), orjson.dumps(event_body(event)).decode()
    text = f"id: {name}\nevent: {event.type.value}\ndata: {body}\n\n"
    return Message(event.id, text.encode())


class Subscription:
    """One stream's place in the feed. Only the feed makes one."""

    def __init__(self, may_see: Callable[[str], bool]) -> None:
        self.may_see = may_see
        self._waiting: deque[Message] = deque()
        self._stirred = asyncio.Event()
        self.is_over = False

    async def wait(self, clock: Clock, seconds: float) -> list[Message]:
        """Return what has come, in order; empty after ``seconds`` or where the stream is over.

        What came before it was cut is still given out.
        """
        if not self._waiting and not self.is_over:
            await pause(clock, seconds, self._stirred)
        self._stirred.clear()
        messages = list(self._waiting)
        self._waiting.clear()
        return messages

    def put(self, message: Message) -> None:
        """Take a message; who has too many waiting is cut."""
        if len(self._waiting) >= _BACKLOG:
            self.end()
        else:
            self._waiting.append(message)
            self._stirred.set()

    def end(self) -> None:
        """Say that nothing more comes."""
        self.is_over = True
        self._stirred.set()


class Feed:
    """The common tail of one process, which reads only while somebody listens."""

    def __init__(
        self, *, history: History, clock: Clock, largest_audience: int = LARGEST_AUDIENCE
    ) -> None:
        self._history = history
        self._clock = clock
        self._largest = largest_audience
        self._audience: set[Subscription] = set()
        # Who has joined hears what is above this id.
        self._floors: dict[Subscription, int] = {}
        self._tail: EventTail | None = None
        self._wanted = asyncio.Event()
        self._woken = asyncio.Event()
        self._closed = False

    @property
    def audience(self) -> int:
        """Return how many streams are open."""
        return len(self._audience)

    def wake(self) -> None:
        """Look soon: something was recorded."""
        self._woken.set()

    def close(self) -> None:
        """End all streams, and open none any more."""
        self._closed = True
        self.end_all()

    def end_all(self) -> None:
        """End all streams: whoever is still welcome comes back, with the rights of now."""
        for subscription in tuple(self._audience):
            self._dismiss(subscription)

    async def run(self) -> None:
        """Read and hand out until cancelled; then all streams are over."""
        try:
            while True:
                await self._wanted.wait()
                wait = await self._once()
                if wait:
                    await pause(self._clock, wait, self._woken)
                    self._woken.clear()
        finally:
            self.close()

    async def subscribe(self, may_see: Callable[[str], bool]) -> Subscription:
        """Return a place in the audience, which hears nothing before it has joined.

        Whoever has one calls ``leave`` in the end.

        Raises:
            FeedClosedError: there is no place.
            DatabaseUnavailableError: nobody knows where "now" is.
        """
        if self._closed or len(self._audience) >= self._largest:
            raise FeedClosedError("no more streams")
        subscription = Subscription(may_see)
        self._audience.add(subscription)
        try:
            if self._tail is None:
                self._begin(await self._history.newest_id())
        except BaseException:
            self.leave(subscription)
            raise
        self._wanted.set()
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Give the place back."""
        self._audience.discard(subscription)
        self._floors.pop(subscription, None)

    def join(self, subscription: Subscription, *, after: int | None) -> bool:
        """Hear what happens after ``after`` (``None``: from now on); false while that is behind.

        What is behind is to be read by a :meth:`catch_up` first.
        """
        position = self._tail.position if self._tail is not None else 0
        if after is not None and after < position:
            return False
        if subscription in self._audience:
            self._floors[subscription] = position if after is None else after
        return True

    def catch_up(self, after: int) -> EventTail:
        """Return what reads the events between ``after`` and the common tail's place."""
        return EventTail(self._history, self._clock, position=after)

    def _begin(self, position: int) -> None:
        """Follow from ``position``, unless another stream was quicker to begin."""
        if self._tail is None:
            self._tail = EventTail(self._history, self._clock, position=position)

    async def _once(self) -> float:
        """Hand out one batch; return the seconds until the next look."""
        if self._tail is None or not self._audience:
            self._tail = None
            self._wanted.clear()
            return 0.0
        try:
            batch = await self._tail.next_batch()
        except DatabaseUnavailableError:
            return _DATABASE_AWAY
        # No wait between the tail's step and this: whoever joins sees both or neither.
        self._hand_out(batch)
        return 0.0 if batch else _POLL

    def _hand_out(self, batch: Sequence[Event]) -> None:
        for event in batch:
            message = message_of(event)
            for subscription, floor in tuple(self._floors.items()):
                if event.id > floor and subscription.may_see(event.connection):
                    subscription.put(message)
                    if subscription.is_over:
                        self.leave(subscription)

    def _dismiss(self, subscription: Subscription) -> None:
        subscription.end()
        self.leave(subscription)
