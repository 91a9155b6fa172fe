"""What callers and browsers send: targets, hosts, URLs for tokens, bodies, cursors, callbacks."""

from __future__ import annotations

import asyncio
import ipaddress
import re
from datetime import UTC, datetime
from typing import cast
from urllib.parse import unquote_to_bytes, urlsplit

import orjson
from aiohttp.web import Request
from multidict import CIMultiDict
from yarl import URL

from daemon.domain.allowed_hosts import HostNotAllowedError, is_allowed, target
from daemon.domain.connection import Connection, Status, is_connection_id
from daemon.domain.errors import Problem
from daemon.domain.event_body import event_name, event_number
from daemon.domain.fields import Field
from daemon.domain.provider import Endpoints, Provider
from daemon.domain.templates import parse_url_template
from daemon.oauth.authorization_response import (
    MAX_RESPONSE,
    CallbackParams,
    CallbackRejection,
    parse_callback,
)
from daemon.oauth.query import with_query
from daemon.sidecar.bodies import MERGE_PATCH, read_form, read_json
from daemon.sidecar.connection_requests import (
    CreateRequest,
    read_change_request,
    read_create_request,
    read_return_url,
)
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.listing import cursor_after, read_listing
from daemon.sidecar.problems import problem_response
from daemon.sidecar.proxy_target import check_path, check_query, split_proxy_path

CANARY = "body-canary-0123456789"
_ALLOWED = ("api.acme.example", "*.files.example", "127.0.0.1:8080", "[::1]:81")
_ACME = Provider(
    name="acme",
    client_id="us",
    api_base_url=parse_url_template("https://api.acme.example/v1"),
    allowed_hosts=_ALLOWED,
    scopes=("read",),
    endpoints=Endpoints(token="https://{region}.as.example/{path}/token"),
    fields={
        "region": Field(name="region", title="Region", in_host=True, default="eu"),
        "path": Field(name="path", title="Path", required=True),
        "kind": Field(name="kind", title="Kind", enum=("a", "b")),
    },
)
_RETURN_URLS = ("https://app.example/done", "https://app.example/any/*")
_AT = datetime(2026, 11, 21, tzinfo=UTC)
_STORED = Connection(
    id="c",
    provider="acme",
    grant="authorization_code",
    status=Status.ACTIVE,
    fields={"path": "p", "gone": "x"},
    metadata={"team": "a"},
    created_at=_AT,
    updated_at=_AT,
)
_LOOPBACK_NAMES = {"localhost", "[::1]"}


def paths_and_hosts(data: bytes) -> None:
    """``METHOD TARGET`` and header lines: answered further, or refused with a known status."""
    text = data.decode("utf-8", "surrogateescape")
    first, *lines = text.split("\n")
    method, _, raw_target = first.partition(" ")
    pairs = (line.partition(":") for line in lines if ":" in line)
    headers = CIMultiDict((name.strip(), value.strip()) for name, _, value in pairs)
    try:
        Guard().check(method, raw_target, headers)
    except Problem as problem:
        assert problem.status in {400, 403, 421}
        _check_problem(problem)
    else:
        _check_host(headers["Host"])
        assert raw_target.startswith("/")
    _check_segment(raw_target)
    found = split_proxy_path(raw_target)
    if found is not None:
        _check_proxied(*found)


def _check_host(host: str) -> None:
    name = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    name = (name or host).lower()
    if name not in _LOOPBACK_NAMES:
        assert ipaddress.ip_address(name).is_loopback, f"{host} is not this machine"
    assert urlsplit(f"//{host}").username is None


def _check_segment(segment: str) -> None:
    try:
        assert is_connection_id(connection_id_from(segment))
    except Problem as problem:
        assert problem.status == 404
        _check_problem(problem)


def _check_proxied(segment: str, path: str, query: str) -> None:
    _check_segment(segment)
    try:
        check_path(path)
        check_query(query)
    except Problem as problem:
        assert problem.status == 400
        _check_problem(problem)
        return
    assert path.isascii()
    assert query.isascii()
    reading = path.encode()
    for _ in range(8):
        names = [name.partition(b";")[0] for name in reading.replace(b"\\", b"/").split(b"/")]
        assert not {b".", b".."} & set(names), "a reading of the path leaves its place"
        reading = unquote_to_bytes(reading)
    opened = URL(f"https://api.acme.example/v1{path}?{query}", encoded=True)
    assert opened.host == "api.acme.example"
    assert opened.raw_path.startswith("/v1")


def allowed_hosts(data: bytes) -> None:
    """A URL: a place that every reader reads alike and that is on the list, or a refusal."""
    url = data.decode("utf-8", "surrogateescape")
    try:
        found = target(url, _ACME, {})
    except HostNotAllowedError as error:
        assert str(error).isprintable()
        return
    assert is_allowed(found, _ALLOWED)
    for given in (url, found.url):
        parts, opened = urlsplit(given), URL(given, encoded=True)
        assert (parts.hostname or "") == (opened.host or "").lower() == found.host.strip("[]")
        assert parts.username is None
        assert opened.user is None
        assert (parts.port or {"https": 443, "http": 80}[parts.scheme]) == found.port
    assert found.scheme == "https" or ipaddress.ip_address(found.host.strip("[]")).is_loopback


def callback(data: bytes) -> None:
    """A query or a form: at most one code or error, and what is read survives a second reading."""
    raw = data.decode("utf-8", "surrogateescape")
    found = parse_callback(raw)
    assert CANARY not in repr(found)
    if isinstance(found, CallbackRejection):
        return
    assert len(raw) <= MAX_RESPONSE
    assert bool(found.code) != bool(found.error)
    for text in (found.state, found.code, found.error, found.iss, *found.others.values()):
        assert text is None or (text.isprintable() and text.encode() is not None)
    again = parse_callback(with_query("", found.as_query()).removeprefix("?"))
    # Encoding may take more room than the provider's did; then nothing is read at all.
    assert again == found or not isinstance(again, CallbackParams)


def bodies(data: bytes) -> None:
    """A letter for the route, then a body: a checked request, or a problem that repeats nothing."""
    letter, body = data[:1], data[1:]
    try:
        asyncio.run(_read(letter, body))
    except Problem as problem:
        assert problem.status in {400, 413, 422}
        _check_problem(problem)
        # The name of a member that does not exist is repeated, its value never.
        if not re.search(rf'{CANARY}[^"]*"\s*:'.encode(), body) and letter != b"f":
            assert CANARY not in str(problem) + str(problem.members)


async def _read(letter: bytes, body: bytes) -> None:
    if letter == b"f":
        request = cast("Request", _Request(body, "application/x-www-form-urlencoded"))
        form = await read_form(request)
        assert all((name + value).encode() is not None for name, value in form.items())
        return
    request = cast("Request", _Request(body, "application/json"))
    given = await read_json(request, content_type=MERGE_PATCH)
    # What the database and the answer are made of is neither half a character nor NUL.
    assert b"\\u0000" not in orjson.dumps(given).replace(b"\\\\", b"")
    match letter:
        case b"p":
            change = read_change_request(given, _STORED, provider=_ACME)
            orjson.dumps([change.label, change.metadata, change.fields])
        case b"a":
            read_return_url(given, default=None, return_urls=_RETURN_URLS)
        case _:
            _check_created(
                read_create_request(given, providers={"acme": _ACME}, return_urls=_RETURN_URLS)
            )


def _check_created(wanted: CreateRequest) -> None:
    assert wanted.id is None or is_connection_id(wanted.id)
    orjson.dumps([wanted.fields, wanted.scopes, wanted.metadata, wanted.return_url])
    if wanted.tokens is not None:
        assert wanted.tokens.refresh_token.isprintable()
        expires_at = wanted.tokens.expires_at
        assert expires_at is None or expires_at.tzinfo is UTC


class _Request:
    """As much of an aiohttp request as reading its body needs."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self.content = self
        self.content_type = content_type
        self.content_length = len(body)
        self.charset = None
        self.protocol = None
        self.headers: dict[str, str] = {}
        self._left = body

    async def readany(self) -> bytes:
        """Return what is left of the body."""
        left, self._left = self._left, b""
        return left


def cursors(data: bytes) -> None:
    """A query of the listings, or an event's id: read as one thing or refused with 400."""
    text = data.decode("utf-8", "surrogateescape")
    number = event_number(text)
    if number is not None:
        assert event_name(number) == text
        assert number < 2**63
    if not text.isascii():
        # The guard refuses such a target.
        return
    try:
        query = URL.build(path="/", query_string=text, encoded=True).query
    except (ValueError, UnicodeError):
        return
    try:
        listing = read_listing(query)
    except Problem as problem:
        assert problem.status == 400
        _check_problem(problem)
        return
    assert 1 <= listing.limit <= 1000
    for each in (listing.provider, listing.text, *listing.metadata, *listing.metadata.values()):
        assert each is None or each.encode() is not None
    if listing.before is not None:
        _check_position(*listing.before)


def _check_position(moment: datetime, connection_id: str) -> None:
    last = Connection(
        id=connection_id,
        provider="acme",
        grant="authorization_code",
        status=Status.ACTIVE,
        created_at=moment,
        updated_at=moment,
    )
    again = read_listing(URL.build(path="/", query={"cursor": cursor_after(last)}).query)
    assert again.before == (moment, connection_id)


def _check_problem(problem: Problem) -> None:
    """What is refused can be said: as JSON, with headers that are header lines."""
    assert problem_response(problem).status == problem.status
