"""Logging in with a caller key, and out again."""

from __future__ import annotations

import math
from http import HTTPStatus

import structlog
from aiohttp import hdrs, web

from daemon.config.settings import Permission
from daemon.domain.clock import Clock
from daemon.sidecar.bodies import read_form
from daemon.sidecar.operator.flashes import flash_of, with_flash
from daemon.sidecar.operator.rendering import OperatorPages
from daemon.sidecar.operator.sessions import (
    LoginLimit,
    Sessions,
    clear_cookie,
    set_cookie,
)
from daemon.sidecar.operator.visits import Door, Visit, next_of
from daemon.sidecar.operator.words import Badge
from daemon.sidecar.public_answers import see_other

log = structlog.get_logger()

# A wrong key costs its sender this long; a person does not notice, a loop does.
_PAUSE = 0.3
_WRONG = (
    "This key is not known here. It is the one in api.key in the state directory, or the key of a"
    " caller in the configuration."
)
_BLIND = (
    "This key is right, but it may not see connections: its caller lacks the permission 'read'."
    " Add it in the configuration, or use another key."
)


class Entrance:
    """The login page's handlers."""

    def __init__(
        self, door: Door, pages: OperatorPages, sessions: Sessions, *, clock: Clock
    ) -> None:
        self._door = door
        self._pages = pages
        self._sessions = sessions
        self._limit = LoginLimit(clock)
        self._clock = clock

    async def show(self, request: web.Request) -> web.StreamResponse:
        """``GET /login``."""
        onward = next_of(request.query.get("next", ""))
        if self._door.session_of(request) is not None:
            return see_other(onward)
        return self._page(onward, flash=flash_of(request.query))

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        """``POST /login``: a caller key becomes a session."""
        form = await read_form(request)
        onward = next_of(form.get("next", ""))
        wait = self._limit.wait()
        if wait > 0:
            return self._too_many(onward, wait)
        session = self._sessions.open(form.get("key", "").strip())
        if session is None:
            self._limit.failed()
            log.warning("operator_login_failed")
            await self._clock.sleep(_PAUSE)
            return self._page(onward, error=_WRONG, status=HTTPStatus.FORBIDDEN)
        if Permission.READ not in session.identity.permissions:
            return self._page(onward, error=_BLIND, status=HTTPStatus.FORBIDDEN)
        response = see_other(onward)
        response.headers[hdrs.SET_COOKIE] = set_cookie(session)
        return response

    async def log_out(self, visit: Visit) -> web.StreamResponse:
        """``POST /logout``."""
        self._sessions.end(visit.session)
        response = see_other(with_flash("/login", "logged_out"))
        response.headers[hdrs.SET_COOKIE] = clear_cookie()
        return response

    def _too_many(self, onward: str, wait: float) -> web.StreamResponse:
        seconds = math.ceil(wait)
        error = f"Too many wrong keys were tried. Wait {seconds} s, then try again."
        response = self._page(onward, error=error, status=HTTPStatus.TOO_MANY_REQUESTS)
        response.headers[hdrs.RETRY_AFTER] = str(seconds)
        return response

    def _page(
        self,
        onward: str,
        *,
        flash: Badge | None = None,
        error: str | None = None,
        status: int = HTTPStatus.OK,
    ) -> web.Response:
        return self._pages.page(
            "login.html", flash=flash, status=status, onward=onward, error=error
        )
