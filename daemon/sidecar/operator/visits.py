"""The door to the operator pages: whose browser this is, and whether its form is one of ours.

It stands before the API's own door, which asks for a caller key: a page's cookie opens pages and
nothing else, and a caller key opens no page.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from daemon.config.settings import Permission
from daemon.domain.errors import Problem
from daemon.sidecar.bodies import read_form
from daemon.sidecar.browser import SECURITY_HEADERS
from daemon.sidecar.operator.flashes import with_flash
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.rendering import OperatorPages
from daemon.sidecar.operator.sessions import COOKIE, Session, Sessions, is_own_form
from daemon.sidecar.problems import let_go, problem_of, unless_gone
from daemon.sidecar.protocol import peer_uid
from daemon.sidecar.public_answers import see_other
from daemon.sidecar.routing import IDENTITY

_SECTIONS = frozenset({"login", "logout", "connections", "providers", "connect", "static"})
# Where a login may lead on to: pages of ours without a query.
_NEXT = re.compile(r"/(?:connections(?:/[A-Za-z0-9._:@-]{1,128})?|providers|connect)", re.ASCII)
CSRF_FIELD = "csrf"


@dataclass(frozen=True, slots=True)
class Visit:
    """A request of somebody who is logged in. ``form`` is empty but for a POST."""

    request: web.Request
    session: Session
    now: datetime
    form: dict[str, str]

    @property
    def connection_id(self) -> str:
        """Return the id in the path, as it was sent."""
        return self.request.match_info["id"]


View = Callable[[Visit], Awaitable[web.StreamResponse]]


def is_page_path(path: str) -> bool:
    """Tell whether a decoded path belongs to the operator pages, existing or not. Never ``/v1``."""
    return path == "/" or (path.startswith("/") and path.split("/")[1] in _SECTIONS)


def next_of(text: str) -> str:
    """Return where to go after a login."""
    return text if _NEXT.fullmatch(text) else "/connections"


class Door:
    """Lets requests in to the views that were made by it."""

    def __init__(self, parts: OperatorParts, pages: OperatorPages, sessions: Sessions) -> None:
        self._parts = parts
        self._pages = pages
        self._sessions = sessions
        self._handlers: set[Handler] = set()

    def middleware(self) -> Middleware:
        """Return what answers requests for pages and passes on all others."""

        @web.middleware
        async def answer_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not is_page_path(request.path):
                return await handler(request)
            response = await self._answer(request)
            for name, value in SECURITY_HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answer_pages

    def open(self, handler: Handler) -> Handler:
        """Return a handler that needs no session."""
        self._handlers.add(handler)
        return handler

    def look(self, view: View) -> Handler:
        """Return the handler of a page that a session with ``read`` may see."""

        async def handler(request: web.Request) -> web.StreamResponse:
            session = self._session(request)
            if session is None:
                return see_other(_login_url(request))
            session.identity.require(Permission.READ)
            return await view(Visit(request, session, self._parts.clock.now(), {}))

        return self.open(handler)

    def act(self, view: View) -> Handler:
        """Return the handler of a form that a session with ``manage`` may send."""

        async def handler(request: web.Request) -> web.StreamResponse:
            session = self._session(request)
            form = await read_form(request)
            if session is None:
                return see_other(with_flash("/login", "session_over"))
            if not is_own_form(session, form.get(CSRF_FIELD, "")):
                return see_other(with_flash("/connections", "form_outdated"))
            session.identity.require(Permission.MANAGE)
            return await view(Visit(request, session, self._parts.clock.now(), form))

        return self.open(handler)

    def leave(self, view: View) -> Handler:
        """Return the handler of the form that ends a session, whatever it may do."""

        async def handler(request: web.Request) -> web.StreamResponse:
            session = self._session(request)
            form = await read_form(request)
            if session is not None and is_own_form(session, form.get(CSRF_FIELD, "")):
                return await view(Visit(request, session, self._parts.clock.now(), form))
            return see_other("/login" if session is None else "/connections")

        return self.open(handler)

    def session_of(self, request: web.Request) -> Session | None:
        """Return the session that a request's cookie stands for."""
        return self._sessions.read(request.cookies.get(COOKIE))

    def _session(self, request: web.Request) -> Session | None:
        session = self.session_of(request)
        if session is not None:
            request[IDENTITY] = session.identity
        return session

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            self._parts.guard.check(
                request.method,
                request.raw_path,
                request.headers,
                unix_socket=peer_uid(request) is not None,
                is_page=True,
            )
            return await self._handler(request)(request)
        except Exception as error:  # noqa: BLE001 - the HTTP boundary; problem_of logs the cause
            unless_gone(error, request)
            problem = problem_of(error, self._parts.entropy)
            let_go(error, request)
        return self._pages.trouble(problem, self._session_for(problem, request))

    def _handler(self, request: web.Request) -> Handler:
        """Return the view: never a route's of somebody else, for no key was asked for here."""
        if request.match_info.http_exception is not None:
            raise request.match_info.http_exception
        handler = request.match_info.handler
        if handler not in self._handlers:
            raise web.HTTPNotFound
        return handler

    def _session_for(self, problem: Problem, request: web.Request) -> Session | None:
        """Return who is told of ``problem``; nobody where the request may not be theirs."""
        if problem.code == "cross_origin" or problem.status == HTTPStatus.MISDIRECTED_REQUEST:
            return None
        return self.session_of(request)


def _login_url(request: web.Request) -> str:
    path = request.path
    if hdrs.COOKIE in request.headers and COOKIE in request.cookies:
        return with_flash("/login", "session_over") + f"&next={next_of(path)}"
    return "/login" if path == "/" else f"/login?next={next_of(path)}"
