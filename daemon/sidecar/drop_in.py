"""[serve] The drop-in token endpoint (RFC 6749 3.2): to an OAuth library we look like its server.

A library that refreshes here gets the current access token. What it calls its client secret is
the caller's key or service account token; what it calls its refresh token is not looked at, and
none is ever given: the connection in the path says it all. Every answer has the shape that such a
library reads.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_plus

import orjson
from aiohttp import hdrs, web

from daemon.config.settings import Permission
from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DatabaseUnavailableError, Problem
from daemon.refresh.reading import Reading, TokenReader
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.bodies import read_form
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.problems import let_go, problem_of, problem_response
from daemon.sidecar.protocol import peer_uid
from daemon.sidecar.routing import Survivor, gone
from daemon.sidecar.token_route import outcome_of
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER, TokenReads

# Authlib renews a minute before the expiry that it was told: with less than that left it would
# come again with every request. Refreshes are planned no later than this by default, too.
_LIFE_TO_GIVE = 60.0
_GRANT_TYPES = frozenset({"refresh_token", "client_credentials"})
# What error_description may hold (RFC 6749 5.2).
_NOT_DESCRIPTIVE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
_BASIC = 'Basic realm="tokenward"'
_NO_CACHE = {hdrs.CACHE_CONTROL: "no-store", hdrs.PRAGMA: "no-cache"}
# A problem's code as an OAuth error and its status (RFC 6749 5.2); the status of others stays.
_ERRORS: Mapping[str, tuple[str, int]] = {
    "disconnected": ("invalid_grant", 400),
    "not_authorized_yet": ("invalid_grant", 400),
    "permission_denied": ("unauthorized_client", 400),
    "reauthorization_required": ("invalid_grant", 400),
    "unauthenticated": ("invalid_client", 401),
    "unknown_connection": ("invalid_grant", 400),
    "unsupported_media_type": ("invalid_request", 400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DropInParts:
    """What the endpoint works with. ``survivor_of`` is the connections' store's."""

    callers: Callers
    guard: Guard
    reader: TokenReader
    reads: TokenReads
    survivor_of: Survivor
    clock: Clock
    entropy: Entropy


class _RefusedError(Exception):
    """An error of RFC 6749 5.2 that no problem stands for."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


class DropIn:
    """``POST /v1/connections/{id}/oauth2/token``. Judges itself who asks."""

    def __init__(self, parts: DropInParts) -> None:
        self._parts = parts

    async def post(self, request: web.Request) -> web.Response:
        """Answer with the current access token (RFC 6749 5.1), or an error (5.2)."""
        began = self._parts.clock.boottime()
        provider = UNKNOWN_PROVIDER
        try:
            identity, form = await self._identify(request)
            _check_grant_type(form.get("grant_type"))
            connection_id = connection_id_from(request.match_info["id"])
            identity.require(Permission.TOKEN, connection_id)
            known = await self._parts.reader.entry(connection_id)
            if known is None:
                raise await gone(connection_id, identity, self._parts.survivor_of)
            provider = known.provider
            reading = await self._parts.reader.read(connection_id, min_ttl=_LIFE_TO_GIVE)
            if reading is None:
                raise await gone(connection_id, identity, self._parts.survivor_of)
            return self._granted(reading, form.get("scope", ""))
        except _RefusedError as refused:
            self._parts.reads.count(provider, "denied")
            return _error(HTTPStatus.BAD_REQUEST, refused.error, refused.description)
        except (Problem, DatabaseUnavailableError) as error:
            problem = problem_of(error, self._parts.entropy)
            let_go(error)
            self._parts.reads.count(provider, outcome_of(problem))
            return _error_of(problem)
        finally:
            self._parts.reads.observe(self._parts.clock.boottime() - began)

    async def _identify(self, request: web.Request) -> tuple[Identity, Mapping[str, str]]:
        """Return who asks, and what."""
        uid = peer_uid(request)
        self._parts.guard.check(
            request.method, request.raw_path, request.headers, unix_socket=uid is not None
        )
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        if authorization is None:
            form = await read_form(request)
            return await self._by_form(form, uid), form
        # Before the body is looked at: strangers are not waited for.
        identity = await self._by_header(authorization)
        form = await read_form(request)
        if form.get("client_secret"):
            raise _RefusedError(
                "invalid_request",
                "Authenticate once: by the Authorization header or by client_secret.",
            )
        return identity, form

    async def _by_header(self, authorization: str) -> Identity:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "basic":
            return await self._parts.callers.recognise(authorization, None)
        for key in _passwords(credentials):
            identity = await self._parts.callers.by_secret(key)
            if identity is not None:
                return identity
        raise _unknown_client()

    async def _by_form(self, form: Mapping[str, str], uid: int | None) -> Identity:
        key = form.get("client_secret")
        if not key:
            return self._parts.callers.authenticate(None, uid)
        identity = await self._parts.callers.by_secret(key)
        if identity is None:
            raise _unknown_client()
        return identity

    def _granted(self, reading: Reading, wanted_scope: str) -> web.Response:
        entry, now = reading.entry, self._parts.clock.now().timestamp()
        token = orjson.loads(entry.body(now))
        granted = token["scope"]
        if granted and not set(wanted_scope.split()) <= set(granted.split()):
            raise _RefusedError(
                "invalid_scope",
                "This connection was not granted all of these scopes. Ask for none of them by "
                "name, or connect again with more.",
            )
        entry.used = True
        self._parts.reads.count(entry.provider, reading.outcome)
        names = ("access_token", "token_type", "expires_in", "scope")
        return _json(200, {name: token[name] for name in names if token[name] not in (None, "")})


def _passwords(credentials: str) -> tuple[str, ...]:
    """Return the password of Basic credentials, decoded as RFC 6749 2.3.1 says, and as it came.

    Half of all libraries do not encode it; a key with ``+`` or ``%`` shows which half.
    """
    try:
        decoded = base64.b64decode(credentials.strip(" "), validate=True).decode()
    except (binascii.Error, ValueError):
        return ()
    password = decoded.partition(":")[2]
    if not password:
        return ()
    return tuple(dict.fromkeys((unquote_plus(password, errors="replace"), password)))


def _check_grant_type(grant_type: str | None) -> None:
    if not grant_type:
        raise _RefusedError("invalid_request", "grant_type is missing.")
    if grant_type not in _GRANT_TYPES:
        raise _RefusedError(
            "unsupported_grant_type", "grant_type is refresh_token or client_credentials here."
        )


def _unknown_client() -> Problem:
    return Problem(
        401,
        "unauthenticated",
        "The client secret is not the key of a configured caller. Use that key as client secret; "
        "the client id may be anything.",
    )


def _error_of(problem: Problem) -> web.Response:
    """Return a problem as an OAuth library reads it, with the problem's own headers."""
    own = "temporarily_unavailable" if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    error, status = _ERRORS.get(problem.code, (own or "invalid_request", problem.status))
    response = _error(status, error, problem.detail)
    shown = problem_response(problem)
    if hdrs.RETRY_AFTER in shown.headers:
        response.headers[hdrs.RETRY_AFTER] = shown.headers[hdrs.RETRY_AFTER]
    if shown.keep_alive is False:
        response.force_close()
    if error == "invalid_client":
        response.headers.add(hdrs.WWW_AUTHENTICATE, _BASIC)
        if hdrs.WWW_AUTHENTICATE in problem.headers:
            response.headers.add(hdrs.WWW_AUTHENTICATE, problem.headers[hdrs.WWW_AUTHENTICATE])
    return response


def _error(status: int, error: str, description: str) -> web.Response:
    words = _NOT_DESCRIPTIVE.sub("'", description)
    return _json(status, {"error": error, "error_description": words})


def _json(status: int, body: Mapping[str, object]) -> web.Response:
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        headers=_NO_CACHE,
        content_type="application/json",
        charset="utf-8",
    )
