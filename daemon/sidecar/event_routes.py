"""[tell] The history over HTTP: pages of it, and a stream of what happens from now on (contract 4).

A stream ends where its reader is too slow or gone, the callers are configured anew, or the daemon
stops: it never outlives the rights it began with. Whoever comes back with ``Last-Event-ID`` has
missed nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from aiohttp import hdrs, web
from multidict import MultiMapping

from daemon.config.settings import Permission
from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.domain.event_body import event_body, event_name, event_number
from daemon.domain.history import Event
from daemon.persistence.history import EventTail
from daemon.sidecar.routing import Finder, json_response, refuse_parameters, require
from daemon.upkeep.feed import Feed, FeedClosedError, Subscription, message_of

_DEFAULT_LIMIT, _LARGEST_LIMIT = 50, 200
_TOO_MANY_DIGITS = 10
# A caller with few connections among many gets what one look finds, and a cursor to go on.
_LOOKED_THROUGH = 2000
# Proxies and load balancers cut what is silent for a minute, some for half of one.
_HEARTBEAT = 15.0
_WRITE_WITHIN = 30.0
_LOOK_AGAIN = 0.5
_RETRY = b"retry: 2000\n\n"
_ALIVE = b": alive\n\n"
_COME_BACK = 10
_STREAM = "text/event-stream"
_JSON = "application/json"


class Pages(Protocol):
    """Where the past is read: ``daemon.persistence.history.PostgresHistory``."""

    async def of_connection(
        self, connection_id: str, *, limit: int, before: int | None
    ) -> list[Event]:
        """Return events of a connection, newest first, older than ``before``."""

    async def newest(self, *, limit: int, before: int | None) -> list[Event]:
        """Return events of all connections, newest first, older than ``before``."""

    async def newest_id(self) -> int:
        """Return the highest id there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventParts:
    """What these routes work with."""

    finder: Finder
    pages: Pages
    feed: Feed
    clock: Clock


class EventRoutes:
    """The handlers."""

    def __init__(self, parts: EventParts) -> None:
        self._parts = parts

    def routes(self) -> list[web.RouteDef]:
        """Return what the api listener serves of this."""
        return [
            web.get("/v1/connections/{id}/events", self.of_connection),
            # A HEAD would be a stream that nobody reads.
            web.get("/v1/events", self.of_all, allow_head=False),
        ]

    async def of_connection(self, request: web.Request) -> web.Response:
        """``GET /v1/connections/{id}/events``: also of a disconnected one, not of a purged one."""
        connection = await self._parts.finder.connection(request, Permission.READ)
        limit, before = _page(request)
        found = await self._parts.pages.of_connection(connection.id, limit=limit + 1, before=before)
        shown = found[:limit]
        return _answer(shown, next_before=shown[-1].id if len(found) > limit else None)

    async def of_all(self, request: web.Request) -> web.StreamResponse:
        """``GET /v1/events``: a stream; a page for who accepts JSON and no event stream."""
        may_see = require(request, Permission.READ).may_see
        accepted = ",".join(request.headers.getall(hdrs.ACCEPT, ())).lower()
        if _JSON in accepted and _STREAM not in accepted:
            return await self._page_of_all(request, may_see)
        return await self._stream(request, may_see)

    async def _page_of_all(
        self, request: web.Request, may_see: Callable[[str], bool]
    ) -> web.Response:
        limit, before = _page(request)
        shown: list[Event] = []
        looked_through = 0
        while looked_through < _LOOKED_THROUGH:
            found = await self._parts.pages.newest(limit=_LARGEST_LIMIT, before=before)
            for event in found:
                before = event.id
                if may_see(event.connection):
                    shown.append(event)
                if len(shown) == limit:
                    return _answer(shown, next_before=before)
            if len(found) < _LARGEST_LIMIT:
                return _answer(shown, next_before=None)
            looked_through += len(found)
        return _answer(shown, next_before=before)

    async def _stream(
        self, request: web.Request, may_see: Callable[[str], bool]
    ) -> web.StreamResponse:
        after = _last_seen(request)
        feed = self._parts.feed
        if after is not None:
            # An id from before a backup was restored would wait for the ids to reach it again.
            after = min(after, await self._parts.pages.newest_id())
        try:
            subscription = await feed.subscribe(may_see)
        except FeedClosedError as error:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too_many_streams",
                "No more event streams can be opened now. Close others, or try again later.",
                retry_after=_COME_BACK,
            ) from error
        try:
            # Before the headers: what happens once they have arrived is in the stream.
            if after is None:
                feed.join(subscription, after=None)
            return await self._answer_with(request, subscription, after)
        finally:
            feed.leave(subscription)

    async def _answer_with(
        self, request: web.Request, subscription: Subscription, after: int | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: _STREAM,
                hdrs.CACHE_CONTROL: "no-store",
                # nginx would gather a buffer full first.
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        try:
            await _write(response, _RETRY)
            if after is not None:
                await self._replay(response, subscription, after)
            await self._follow(response, subscription)
        except (ConnectionError, TimeoutError):
            # The reader is gone or takes nothing: no one to tell.
            _abort(request)
        return response

    async def _replay(
        self, response: web.StreamResponse, subscription: Subscription, after: int
    ) -> None:
        """Write what came after ``after``, until the stream is where the feed is."""
        feed, clock = self._parts.feed, self._parts.clock
        tail, spoken = feed.catch_up(after), clock.boottime()
        while not feed.join(subscription, after=tail.position) and not subscription.is_over:
            batch = await _next_batch(tail)
            seen = [event for event in batch if subscription.may_see(event.connection)]
            if seen or clock.boottime() - spoken >= _HEARTBEAT:
                await _write(response, b"".join(message_of(one).data for one in seen) or _ALIVE)
                spoken = clock.boottime()
            if not batch:
                await clock.sleep(_LOOK_AGAIN)

    async def _follow(self, response: web.StreamResponse, subscription: Subscription) -> None:
        while True:
            messages = await subscription.wait(self._parts.clock, _HEARTBEAT)
            if messages:
                await _write(response, b"".join(message.data for message in messages))
            elif subscription.is_over:
                return
            else:
                await _write(response, _ALIVE)


async def _next_batch(tail: EventTail) -> list[Event]:
    """Return what comes next; nothing while the database is away."""
    try:
        return await tail.next_batch()
    except DatabaseUnavailableError:
        return []


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_WITHIN):
        await response.write(data)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _last_seen(request: web.Request) -> int | None:
    """Return the id after which a stream goes on; ``None`` where it begins now.

    A browser that comes back says it in the header, and its URL still says where it began.
    """
    refuse_parameters(request, frozenset({"after"}))
    name = request.headers.get("Last-Event-ID") or request.query.get("after")
    return None if name is None else _number(name, "Last-Event-ID and after take an event's id.")


def _page(request: web.Request) -> tuple[int, int | None]:
    """Return ``limit`` and where the page before ended."""
    refuse_parameters(request, frozenset({"limit", "cursor"}))
    cursor = request.query.get("cursor")
    bad = "cursor is the next_cursor of an earlier page, unchanged."
    return _limit(request.query), None if cursor is None else _number(cursor, bad)


def _limit(query: MultiMapping[str]) -> int:
    text = query.get("limit")
    if text is None:
        return _DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) < _TOO_MANY_DIGITS and int(text) >= 1):
        raise _bad(f"limit is a number from 1 to {_LARGEST_LIMIT}.")
    return min(int(text), _LARGEST_LIMIT)


def _number(name: str, problem: str) -> int:
    number = event_number(name)
    if number is None:
        raise _bad(problem)
    return number


def _answer(shown: Sequence[Event], *, next_before: int | None) -> web.Response:
    return json_response(
        {
            "events": [event_body(event) for event in shown],
            "next_cursor": None if next_before is None else event_name(next_before),
        }
    )


def _bad(detail: str) -> Problem:
    return Problem(HTTPStatus.BAD_REQUEST, "bad_request", detail)
