"""Request bodies: read within limits of size and time, then parsed strictly, once.

aiohttp has no time limit for a body that never ends, and Python's parser takes what RFC 8259
does not: ``NaN``, a name twice, lone surrogates.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import orjson
from aiohttp import hdrs, web

from daemon.domain.errors import Problem
from daemon.sidecar.protocol import awaiting_body

BODY_LIMIT = 64 * 1024
"""Bytes. Also for ``web.Application(client_max_size=…)``."""
BODY_DEADLINE = 10.0
"""Seconds for a whole body to arrive."""
JSON = frozenset({"application/json"})
"""The content type of bodies, if a route does not say otherwise."""
MERGE_PATCH = JSON | {"application/merge-patch+json"}
"""The content types of a JSON merge patch (RFC 7396); the first is what most callers have."""
_FORM = frozenset({"application/x-www-form-urlencoded"})
_MOST_FIELDS = 100


async def read_json(
    request: web.Request,
    *,
    content_type: frozenset[str] = JSON,
    limit: int = BODY_LIMIT,
    deadline: float = BODY_DEADLINE,
) -> dict[str, Any]:
    """Return the JSON object in the body (RFC 8259): UTF-8, every name once, no NUL in text.

    Raises:
        Problem: 415 for another content type, 413 beyond ``limit`` bytes, 408 beyond
            ``deadline`` seconds, 400 for anything that is no such object.
    """
    _require_type(request, content_type)
    body = await _read(request, limit=limit, deadline=deadline)
    try:
        # Two parsers: the first is strict in everything but repeated names, the second sees those.
        orjson.loads(body)
        parsed = json.loads(body.decode("utf-8"), object_pairs_hook=_object_of)
    except (ValueError, RecursionError) as error:
        raise _bad_body(
            "The body is not well-formed JSON in UTF-8 with every name once and no NUL in text."
        ) from error
    if not isinstance(parsed, dict):
        raise _bad_body("The body must be a JSON object, as in {}.")
    return parsed


async def read_form(
    request: web.Request, *, limit: int = BODY_LIMIT, deadline: float = BODY_DEADLINE
) -> dict[str, str]:
    """Return the fields of an ``application/x-www-form-urlencoded`` body, empty ones included.

    Raises:
        Problem: as ``read_json``; 400 also for a repeated field, which RFC 6749 3.2 forbids.
    """
    _require_type(request, _FORM)
    body = await _read(request, limit=limit, deadline=deadline)
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
        return _object_of(pairs)
    except ValueError as error:
        raise _bad_body(
            "The body is not a well-formed form in UTF-8 with every field once."
        ) from error


def _require_type(request: web.Request, wanted: frozenset[str]) -> None:
    charset = (request.charset or "utf-8").lower()
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if request.content_type in wanted and charset in ("utf-8", "utf8") and encoding == "identity":
        return
    raise Problem(
        415,
        "unsupported_media_type",
        f"Send the body as '{min(wanted)}' in UTF-8, not compressed.",
    )


async def _read(request: web.Request, *, limit: int, deadline: float) -> bytes:
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        with awaiting_body(request):
            async with asyncio.timeout(deadline):
                while chunk := await request.content.readany():
                    body += chunk
                    if len(body) > limit:
                        raise _too_large(limit)
    except TimeoutError as error:
        raise Problem(
            408,
            "request_timeout",
            f"The body did not arrive within {deadline:g} seconds. Send it at once.",
        ) from error
    except web.RequestPayloadError as error:
        raise _bad_body("The body does not follow its Transfer-Encoding.") from error
    return bytes(body)


def _object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary; refuse repeated names and NUL, which no column can hold."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is repeated")
    if any("\0" in name or _holds_nul(value) for name, value in pairs):
        raise ValueError("text holds NUL")
    return result


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    return isinstance(value, list) and any(map(_holds_nul, value))


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        "body_too_large",
        f"The body is larger than {limit} bytes. Send a smaller one.",
    )


def _bad_body(detail: str) -> Problem:
    return Problem(400, "bad_request", detail)
