"""What the buttons do: one deed each, then the browser is sent to a page that says how it went."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from daemon.config.settings import Permission
from daemon.domain.claimable import Wanted
from daemon.domain.connection import Connection, is_connection_id
from daemon.domain.errors import Problem
from daemon.domain.revocation import Initiator
from daemon.sidecar.operator.flashes import with_flash
from daemon.sidecar.operator.looking import Looking
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.rendering import OperatorPages
from daemon.sidecar.operator.visits import Visit
from daemon.sidecar.public_answers import see_other
from daemon.sidecar.routing import Finder

# Why there is no token: shown beside the connection, not instead of it.
_NO_TOKEN = frozenset(
    {
        "token_unavailable",
        "reauthorization_required",
        "not_authorized_yet",
        "disconnected",
    }
)
# Why a connection cannot be created that another choice on the form may change.
_CORRECTABLE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.CONFLICT,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)


class Acting:
    """The handlers of POST requests; each needs the permission ``manage``."""

    def __init__(self, parts: OperatorParts, pages: OperatorPages, looking: Looking) -> None:
        self._parts = parts
        self._pages = pages
        self._looking = looking
        self._finder = Finder(connections=parts.connections, settings=parts.settings)

    async def test(self, visit: Visit) -> web.StreamResponse:
        """``POST /connections/{id}/test``."""
        connection = await self._found(visit)
        self._finder.provider_of(connection)
        try:
            report = await self._parts.tests.test(connection)
        except Problem as problem:
            if problem.code not in _NO_TOKEN:
                raise
            return _done(connection, "not_tested")
        return _done(connection, "test_passed" if report.ok else "test_failed")

    async def refresh(self, visit: Visit) -> web.StreamResponse:
        """``POST /connections/{id}/refresh``."""
        connection = await self._found(visit)
        provider = self._finder.provider_of(connection)
        try:
            await self._parts.reader.refresh_now(
                Wanted(
                    connection_id=connection.id,
                    provider=provider.name,
                    generation=connection.generation,
                    rate=provider.rate,
                    forced=True,
                )
            )
        except Problem as problem:
            if problem.code not in _NO_TOKEN:
                raise
            return _done(connection, "not_refreshed")
        return _done(connection, "refreshed")

    async def reconnect(self, visit: Visit) -> web.StreamResponse:
        """``POST /connections/{id}/reconnect``: on to the connect page, or a link to it."""
        connection = await self._found(visit)
        self._finder.provider_of(connection)
        _, url = await self._parts.authorizer.issue_ticket(
            connection, caller=visit.session.identity.name, return_url=None
        )
        return self._onward(visit, connection, url)

    async def disconnect(self, visit: Visit) -> web.StreamResponse:
        """``POST /connections/{id}/disconnect``, after it was asked for twice."""
        connection = await self._found(visit)
        purge = visit.form.get("purge") == "on"
        _, result = await self._parts.disconnecting.disconnect(
            connection, initiator=Initiator.OPERATOR, purge=purge
        )
        if purge:
            return see_other(with_flash("/connections", "removed"))
        return _done(connection, f"disconnected_{result.value}")

    async def connect(self, visit: Visit) -> web.StreamResponse:
        """``POST /connect``: a new connection, and on to its connect page."""
        name, wanted = visit.form.get("provider", ""), visit.form.get("id", "").strip()
        try:
            connection, url = await self._created(visit, name, wanted or None)
        except Problem as problem:
            if problem.status not in _CORRECTABLE:
                raise
            return self._looking.connect_form(
                visit, provider=name, connection_id=wanted, problem=problem
            )
        return _done(connection, "created") if url is None else self._onward(visit, connection, url)

    async def _created(
        self, visit: Visit, name: str, connection_id: str | None
    ) -> tuple[Connection, str | None]:
        provider = self._parts.settings().providers.get(name)
        if provider is None:
            raise Problem(422, "invalid_request", "Choose a provider.")
        if connection_id is not None and not is_connection_id(connection_id):
            raise Problem(
                422,
                "invalid_request",
                "An id begins with a letter or digit and goes on with letters, digits or . _ : @ -,"
                " 128 characters at most.",
            )
        return await self._parts.create(visit.session.identity, provider, connection_id)

    async def _found(self, visit: Visit) -> Connection:
        return await self._finder.connection(visit.request, Permission.MANAGE)

    def _onward(self, visit: Visit, connection: Connection, url: str) -> web.StreamResponse:
        """Go to the connect page, or show its address for whoever owns the account."""
        if visit.form.get("how") != "link":
            return see_other(url)
        return self._pages.page(
            "link.html", session=visit.session, connection=connection, connect_url=url
        )


def _done(connection: Connection, code: str) -> web.Response:
    return see_other(with_flash(f"/connections/{connection.id}", code))
