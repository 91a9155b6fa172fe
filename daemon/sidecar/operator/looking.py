"""The pages that only show: the list, one connection, the providers, the forms."""

from __future__ import annotations

import re
from dataclasses import replace

from aiohttp import web
from multidict import MultiDict

from daemon.config.settings import Permission
from daemon.domain.connection import Connection, Status
from daemon.domain.errors import Problem
from daemon.persistence.connections import Filter
from daemon.sidecar.listing import cursor_after, read_listing
from daemon.sidecar.operator.flashes import flash_of
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.rendering import OperatorPages
from daemon.sidecar.operator.views import (
    Detail,
    Search,
    curl_of,
    detail_of,
    provider_view,
    row_of,
)
from daemon.sidecar.operator.visits import Visit
from daemon.sidecar.operator.words import history_line
from daemon.sidecar.public_answers import see_other
from daemon.sidecar.routing import Finder

_ROWS = 50
_EVENTS = 50
_EVENT_ID = re.compile(r"[0-9]{1,18}", re.ASCII)
STATUS_WORDS = (
    (Status.ACTIVE.value, "Active"),
    (Status.FAILING.value, "Failing"),
    (Status.REAUTHORIZATION_REQUIRED.value, "Reconnect needed"),
    (Status.PENDING.value, "Not authorized yet"),
    (Status.DISCONNECTED.value, "Disconnected"),
)


class Looking:
    """The handlers of GET requests."""

    def __init__(self, parts: OperatorParts, pages: OperatorPages) -> None:
        self._parts = parts
        self._pages = pages
        self._finder = Finder(connections=parts.connections, settings=parts.settings)

    async def index(self, visit: Visit) -> web.StreamResponse:
        """``GET /`` and ``GET /connections``: what there is, narrowed by a search."""
        query = visit.request.query
        search = Search(
            text=query.get("q", "").strip(),
            provider=query.get("provider", ""),
            status=query.get("status", ""),
        )
        shown, cursor = await self._page_of(visit, search, query.get("cursor", ""))
        return self._pages.page(
            "list.html",
            session=visit.session,
            flash=flash_of(query),
            rows=[row_of(connection, visit.now) for connection in shown],
            search=search,
            is_first=not query.get("cursor"),
            next_url=search.url(cursor) if cursor else None,
            providers=sorted(self._parts.settings().providers),
            statuses=STATUS_WORDS,
            may_manage=_may_manage(visit),
        )

    async def detail(self, visit: Visit) -> web.StreamResponse:
        """``GET /connections/{id}``: one connection, with what happened to it."""
        connection = await self._finder.connection(visit.request, Permission.READ)
        before = visit.request.query.get("before", "")
        detail = await self._detail(
            visit, connection, before=int(before) if _EVENT_ID.fullmatch(before) else None
        )
        return self._pages.page(
            "detail.html",
            session=visit.session,
            flash=flash_of(visit.request.query),
            detail=detail,
            may_manage=_may_manage(visit),
        )

    async def confirm(self, visit: Visit) -> web.StreamResponse:
        """``GET /connections/{id}/disconnect``: ask before it is done."""
        connection = await self._finder.connection(visit.request, Permission.MANAGE)
        return self._pages.page(
            "disconnect.html",
            session=visit.session,
            row=row_of(connection, visit.now),
            is_disconnected=connection.status is Status.DISCONNECTED,
        )

    async def back(self, visit: Visit) -> web.StreamResponse:
        """``GET`` of a button's address, as after a session's end: the connection's own page."""
        connection = await self._finder.connection(visit.request, Permission.READ)
        return see_other(f"/connections/{connection.id}")

    async def home(self, visit: Visit) -> web.StreamResponse:
        """``GET /logout``: nothing is ended by a link."""
        del visit
        return see_other("/connections")

    async def providers(self, visit: Visit) -> web.StreamResponse:
        """``GET /providers``: what is configured, and what to register there."""
        settings = self._parts.settings()
        return self._pages.page(
            "providers.html",
            session=visit.session,
            providers=[provider_view(each, settings) for each in settings.providers.values()],
            redirect_uri=settings.redirect_uri,
            may_manage=_may_manage(visit),
        )

    async def connect(self, visit: Visit) -> web.StreamResponse:
        """``GET /connect``: the form that creates a connection."""
        chosen = visit.request.query.get("provider", "")
        return self.connect_form(visit, provider=chosen, connection_id="", problem=None)

    def connect_form(
        self, visit: Visit, *, provider: str, connection_id: str, problem: Problem | None
    ) -> web.Response:
        """Return the form, with what was typed where that could not be used."""
        visit.session.identity.require(Permission.MANAGE)
        return self._pages.page(
            "connect.html",
            session=visit.session,
            status=200 if problem is None else problem.status,
            providers=sorted(self._parts.settings().providers),
            chosen=provider,
            connection_id=connection_id,
            problem=problem,
        )

    async def _page_of(
        self, visit: Visit, search: Search, cursor: str
    ) -> tuple[list[Connection], str | None]:
        given = {
            "q": search.text,
            "provider": search.provider,
            "status": search.status,
            "cursor": cursor,
        }
        wanted = read_listing(MultiDict({name: value for name, value in given.items() if value}))
        page = await self._parts.connections.page(
            Filter(
                provider=wanted.provider,
                status=wanted.status,
                text=wanted.text,
                patterns=visit.session.identity.patterns,
            ),
            limit=_ROWS + 1,
            before=wanted.before,
        )
        shown = page[:_ROWS]
        return shown, cursor_after(shown[-1]) if len(page) > _ROWS else None

    async def _detail(self, visit: Visit, connection: Connection, *, before: int | None) -> Detail:
        settings = self._parts.settings()
        events = await self._parts.history.of_connection(
            connection.id, limit=_EVENTS + 1, before=before
        )
        detail = detail_of(
            connection,
            settings.providers.get(connection.provider),
            visit.session.identity,
            curl=curl_of(connection.id, visit.request.host, settings),
            now=visit.now,
        )
        shown = events[:_EVENTS]
        more = len(events) > _EVENTS
        return replace(
            detail,
            history=tuple(history_line(event, visit.now) for event in shown),
            older=f"/connections/{connection.id}?before={shown[-1].id}#history" if more else None,
        )


def _may_manage(visit: Visit) -> bool:
    return Permission.MANAGE in visit.session.identity.permissions
