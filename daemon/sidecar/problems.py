"""How errors are answered: RFC 9457 ``application/problem+json``, always with what to do next.

The HTTP boundary: below it exceptions are raised, above it there are only answers. An answer to
an error that nobody foresaw says no more than a reference, which is in the log beside its cause.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from http import HTTPStatus

import orjson
import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_urldispatcher import SystemRoute

from daemon.domain.clock import Entropy
from daemon.domain.errors import DatabaseUnavailableError, Problem

log = structlog.get_logger()

CONTENT_TYPE = "application/problem+json"
# How soon to ask again while the database is away: reconnecting takes a few seconds at least.
_DATABASE_RETRY_AFTER = 5
_DEEPEST_FRAMES = 12
# Answers given while the rest of a body may still be on its way: that connection ends.
_BODY_UNREAD = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})

_TITLES: Mapping[str, str] = {
    "bad_request": "The request cannot be understood",
    "body_too_large": "The body is too large",
    "connection_exists": "The id is taken",
    "cross_origin": "Web pages of other origins are not answered",
    "database_unavailable": "The database cannot be used right now",
    "disconnected": "The connection was disconnected",
    "expectation_failed": "The expectation cannot be met",
    "host_not_allowed": "The host is not allowed for this provider",
    "internal_error": "Something went wrong here",
    "invalid_request": "Members of the request are wrong",
    "method_not_allowed": "The route has no such method",
    "misdirected_request": "The request was sent to another server",
    "not_authorized_yet": "The connection was not authorized yet",
    "not_found": "There is no such route",
    "not_in_this_role": "This process has another role",
    "permission_denied": "The caller lacks a permission",
    "provider_not_configured": "The provider is not configured any more",
    "reauthorization_required": "A person must connect again",
    "request_timeout": "The request took too long to arrive",
    "test_not_configured": "The provider has no test request",
    "token_unavailable": "No token can be had right now",
    "too_many_proxied_requests": "The caller has too many proxied requests in flight",
    "too_many_streams": "Too many event streams are open",
    "unauthenticated": "The caller is not known",
    "unknown_connection": "There is no such connection",
    "unknown_provider": "There is no such provider",
    "unsupported_media_type": "The body has the wrong type",
    "upgrade_not_supported": "Connections are not upgraded",
    "upstream_failed": "The API could not be reached or broke off",
    "upstream_timeout": "The API did not answer in time",
    "value_missing": "A value for the request is missing",
    "verification_unavailable": "The caller cannot be verified right now",
}


def problem_response(problem: Problem) -> web.Response:
    """Return ``problem`` as a response, never to be stored by a cache.

    A member ``retry_after`` is rounded up to whole seconds, at least 1, and is also sent as the
    ``Retry-After`` header (RFC 9110 10.2.3).
    """
    headers = {**problem.headers, hdrs.CACHE_CONTROL: "no-store"}
    members = problem.members
    retry_after = members.get("retry_after")
    if isinstance(retry_after, (int, float)):
        seconds = max(1, math.ceil(retry_after))
        members = {**members, "retry_after": seconds}
        headers[hdrs.RETRY_AFTER] = str(seconds)
    body = {
        **members,
        "type": f"urn:tokenward:problem:{problem.code}",
        "code": problem.code,
        "title": _TITLES.get(problem.code) or HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    response = web.Response(
        status=problem.status, headers=headers, content_type=CONTENT_TYPE, body=orjson.dumps(body)
    )
    if problem.status in _BODY_UNREAD:
        response.force_close()
    return response


def problem_of(error: Exception, entropy: Entropy) -> Problem:
    """Return the answer to ``error``; where it is one that nobody foresaw, log its cause first."""
    match error:
        case Problem():
            return error
        case DatabaseUnavailableError():
            return Problem(
                503,
                "database_unavailable",
                "The database cannot be used right now, and this cannot be answered without it. "
                "Try again later; tokenward reconnects by itself.",
                retry_after=_DATABASE_RETRY_AFTER,
            )
        case web.HTTPException():
            return _problem_of_http(error)
        case _:
            return _unforeseen(error, reference=entropy(8).hex())


def error_middleware(entropy: Entropy) -> Middleware:
    """Return the middleware that turns what a handler raises into an answer.

    It belongs outermost. Redirects pass. An error after the first byte of a streamed answer cuts
    the connection, for nothing true can be said there any more. Cancellation passes.
    """

    @web.middleware
    async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            problem = problem_of(error, entropy)
            let_go(error, request)
            return problem_response(problem)
        except Exception as error:
            unless_gone(error, request)
            problem = problem_of(error, entropy)
            let_go(error, request)
            if request.writer.output_size > 0:
                raise ConnectionError("the answer had begun") from error
            return problem_response(problem)

    return answer_errors


def unless_gone(error: Exception, request: web.Request) -> None:
    """Return where somebody is left to be told of ``error``.

    Raises:
        ConnectionError: the caller is gone, which is most likely the very cause: nothing to log.
    """
    if request.transport is None or request.transport.is_closing():
        let_go(error, request)
        raise ConnectionError("the caller is gone") from error


def let_go(error: BaseException, request: web.Request | None = None) -> None:
    """Release what an error holds that was answered; ``request``: the router may have raised it.

    An error holds the frames it came through, and these hold it where it has another name there;
    the router's error of a wrong path or method is in the request as well. Such circles only the
    garbage collector ends, and everybody waits while it does: a tenth of a second, where some
    thousand strangers knock at once.
    """
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    if request is not None:
        route = request.match_info.route
        if isinstance(route, SystemRoute):
            # Made for this request, and a circle by itself: it holds a method of its own.
            vars(route).clear()


def _problem_of_http(error: web.HTTPException) -> Problem:
    match error:
        case web.HTTPNotFound():
            return Problem(
                404,
                "not_found",
                "There is no such route on this listener. Compare method and path with the table "
                "of routes in the documentation.",
            )
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return Problem(
                405,
                "method_not_allowed",
                f"This route takes {allowed}.",
                headers={hdrs.ALLOW: allowed},
            )
        case web.HTTPRequestEntityTooLarge():
            return Problem(413, "body_too_large", "The body is too large. Send a smaller one.")
        case _:
            phrase = HTTPStatus(error.status).phrase
            code = phrase.lower().replace(" ", "_").replace("-", "_")
            return Problem(error.status, code, f"{phrase}. Change the request before a next try.")


def _unforeseen(error: Exception, *, reference: str) -> Problem:
    # Types and places only: the text of a foreign exception may quote the values it choked on.
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(type(cause).__qualname__)
        cause = cause.__cause__ or cause.__context__
    frames = traceback.extract_tb(error.__traceback__)[-_DEEPEST_FRAMES:]
    log.error(
        "request_failed",
        reference=reference,
        error=chain,
        frames=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    )
    return Problem(
        500,
        "internal_error",
        f"Something went wrong here. Look for the reference {reference} in tokenward's log, "
        "and report it with the lines around it.",
        reference=reference,
    )
