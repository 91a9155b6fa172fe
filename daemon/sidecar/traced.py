"""A caller's request as a span below the caller's own (W3C Trace Context)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from daemon.domain.errors import Problem
from daemon.domain.tracing import Span, SpanKind, Tracer, method_of


async def traced(
    tracer: Tracer,
    request: web.BaseRequest,
    route: str,
    work: Callable[[Span], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Return what ``work`` answers, told as a span. ``route`` is a pattern, never a path.

    Only what is our fault is told as an error (OpenTelemetry's convention for servers). Raises
    what ``work`` raises.
    """
    method = method_of(request.method)
    told = {"http.request.method": method, "http.route": route}
    with (
        tracer.incoming(request.headers),
        tracer.span(f"{method} {route}", told, kind=SpanKind.SERVER) as span,
    ):
        try:
            response = await work(span)
        except Problem as problem:
            refused = problem
            span.set("tokenward.outcome", problem.code)
            _tell(span, problem.status)
        else:
            _tell(span, response.status)
            return response
    try:
        raise refused
    finally:
        # This frame and the error would hold each other.
        del refused


def _tell(span: Span, status: int) -> None:
    span.set("http.response.status_code", status)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        span.fail(str(status))
