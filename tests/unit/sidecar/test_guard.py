"""What a request must look like before anybody asks who sent it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from daemon.domain.connection import CONNECTION_ID
from daemon.domain.errors import Problem
from daemon.sidecar.guard import Guard, connection_id_from, is_accepted_host

TARGET = "/v1/connections/acme-1/token"


def _refused(
    guard: Guard,
    headers: dict[str, str],
    *,
    method: str = "GET",
    target: str = TARGET,
    unix_socket: bool = False,
    is_page: bool = False,
) -> tuple[int, str] | None:
    try:
        guard.check(method, target, CIMultiDict(headers), unix_socket=unix_socket, is_page=is_page)
    except Problem as problem:
        return problem.status, problem.code
    return None


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:7420",
        "127.0.0.1:1",
        "127.0.0.2:7420",
        "localhost",
        "LOCALHOST:7420",
        "[::1]",
        "[::1]:7420",
    ],
)
def test_loopback_hosts_are_answered(host: str) -> None:
    """Loopback names pass with any port, once and again."""
    guard = Guard()
    assert _refused(guard, {"host": host}) is None
    assert _refused(guard, {"Host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:7420",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io",
        "evil-localhost",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.01",
        "0.0.0.0",  # noqa: S104 - a header to be refused
        "10.0.0.1",
        "[::]",
        "[::ffff:127.0.0.1]",
        "::1",
        "[::1",
        "127.0.0.1:",
        "127.0.0.1:70000000",
        "127.0.0.1:80:80",
        "user@127.0.0.1",
        "127.0.0.1/",
        "127.0.0.1 ",
        "127.0.0.1, evil.example",
        "localhost#",
        "ⅼocalhost",  # noqa: RUF001 - the look-alike is the point
        "١٢٧.0.0.1",
    ],
)
def test_other_hosts_are_misdirected(host: str) -> None:
    """A foreign, odd or merely resolving name is 421: the mark of DNS rebinding."""
    assert _refused(Guard(), {"Host": host}) == (421, "misdirected_request")


def test_no_host_is_misdirected() -> None:
    """HTTP/1.0 without Host names no server."""
    assert _refused(Guard(), {}) == (421, "misdirected_request")


def test_configured_hosts_are_answered() -> None:
    """A configured name passes like a loopback one, and nothing near it does."""
    guard = Guard(hosts=["Tokens.internal"])
    assert _refused(guard, {"Host": "tokens.INTERNAL:80"}) is None
    assert _refused(guard, {"Host": "x.tokens.internal"}) == (421, "misdirected_request")


def test_a_unix_socket_needs_no_host() -> None:
    """Over a Unix socket Host is not judged; what marks a browser still is."""
    guard = Guard()
    for headers in ({}, {"Host": "whatever"}, {"Host": ""}):
        assert _refused(guard, headers, unix_socket=True) is None
    origin = {"Host": "x", "Origin": "http://localhost"}
    assert _refused(guard, origin, unix_socket=True) == (403, "cross_origin")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:7420"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": ""},
        {"sec-fetch-site": "Same-Origin"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_browsers_of_other_origins_are_refused(method: str, headers: dict[str, str]) -> None:
    """Any Origin, and any Sec-Fetch-Site that is not the page itself or the person, is 403."""
    answer = _refused(Guard(), {"Host": "localhost", **headers}, method=method)
    assert answer == (403, "cross_origin")


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_a_person_in_the_address_bar_is_answered(site: str) -> None:
    """Sec-Fetch-Site none and same-origin pass."""
    assert _refused(Guard(), {"Host": "localhost", "Sec-Fetch-Site": site}) is None


def test_the_own_origin_is_answered_to_pages() -> None:
    """An operator page's own origin may send Origin to pages, and no other, nor a near one."""
    guard = Guard()
    host = {"Host": "127.0.0.1:7420"}
    own = {"Origin": "http://127.0.0.1:7420", "Sec-Fetch-Site": "same-origin"}
    assert _refused(guard, {**host, **own}, is_page=True) is None
    for origin in ("http://127.0.0.1:7421", "https://127.0.0.1:7420", "http://127.0.0.1", "null"):
        refused = _refused(guard, {**host, "Origin": origin}, is_page=True)
        assert refused == (403, "cross_origin")
    forged = {**host, **own, "Sec-Fetch-Site": "cross-site"}
    assert _refused(guard, forged, is_page=True) == (403, "cross_origin")
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert _refused(guard, rebound, is_page=True) == (421, "misdirected_request")


def test_the_own_origin_is_not_answered_to_callers_routes() -> None:
    """No script on a page, not even on our own, may ask what callers ask."""
    own = {"Host": "127.0.0.1:7420", "Origin": "http://127.0.0.1:7420"}
    assert _refused(Guard(), own) == (403, "cross_origin")


def test_a_preflight_is_refused_and_plain_options_is_not() -> None:
    """A CORS preflight is 403 even without Origin; OPTIONS alone is the router's business."""
    preflight = {"Host": "localhost", "Access-Control-Request-Method": "GET"}
    assert _refused(Guard(), preflight, method="OPTIONS") == (403, "cross_origin")
    assert _refused(Guard(), {"Host": "localhost"}, method="OPTIONS") is None


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:7420/v1/connections/acme-1/token",
        "http://evil.example/",
        "*",
        "",
        "evil.example:443",
        "/v1/connections/%00/token",
        "/v1/connections?q=a%00b",
        "/v1/connections/\udcff",
        "/v1/connections/é",
    ],
)
def test_odd_targets_are_bad_requests(target: str) -> None:
    """Absolute form, asterisk, authority, NUL and bytes beyond ASCII are 400, on any socket."""
    guard = Guard()
    for unix_socket in (False, True):
        answer = _refused(guard, {"Host": "localhost"}, target=target, unix_socket=unix_socket)
        assert answer == (400, "bad_request")


def test_refused_hosts_are_never_remembered() -> None:
    """A flood of foreign and of good hosts leaves the memory small and the answers right."""
    guard = Guard()
    for number in range(1, 500):
        assert _refused(guard, {"Host": f"evil{number}.example"}) is not None
        assert _refused(guard, {"Host": f"localhost:{number}"}) is None
    assert len(guard._known_hosts) <= 64


@given(st.text(max_size=30))
def test_no_text_but_a_loopback_name_is_a_loopback_host(host: str) -> None:
    """Whatever is accepted is a loopback name or address, and no text makes the check fail."""
    if is_accepted_host(host):
        assert host.lower().startswith(("localhost", "127.", "[::1]"))


@pytest.mark.parametrize(
    ("segment", "connection_id"),
    [
        ("acme-1", "acme-1"),
        ("a.b_c:d@e-f", "a.b_c:d@e-f"),
        ("a%3Ab%40c", "a:b@c"),
        ("%61cme", "acme"),
        ("x" * 128, "x" * 128),
    ],
)
def test_ids_are_read_from_a_raw_segment(segment: str, connection_id: str) -> None:
    """An id may come as it is, or as a careful library encodes it."""
    assert connection_id_from(segment) == connection_id


@pytest.mark.parametrize(
    "segment",
    [
        "",
        ".",
        "..",
        "%2e%2e",
        "%2E%2e",
        "a%2fb",
        "a%2Fb",
        "a%5cb",
        "a\\b",
        "a;b",
        "a%3bb",
        "a%00",
        "%00",
        "a%2541",
        "a%",
        "a%4",
        "a%zz",
        "%ff%fe",
        "a%c3%a9",
        "аcme",  # noqa: RUF001 - Cyrillic a: the look-alike is the point
        "a\udcff",
        "a b",
        "a+b",
        "a\n",
        "-a",
        "x" * 129,
        "x" * 100_000,
        "%61" * 50_000,
    ],
)
def test_what_is_no_id_is_unknown(segment: str) -> None:
    """Dot segments, slashes, NUL, double encoding, look-alikes and giants are all just 404 (P3)."""
    with pytest.raises(Problem) as caught:
        connection_id_from(segment)
    assert (caught.value.status, caught.value.code) == (404, "unknown_connection")
    assert caught.value.members == {}


@given(st.from_regex(CONNECTION_ID, fullmatch=True))
def test_every_id_survives_encoding(connection_id: str) -> None:
    """Every id is read back from its fully encoded form and from its own."""
    assert connection_id_from(connection_id) == connection_id
    assert connection_id_from(quote(connection_id, safe="")) == connection_id


@given(st.text(max_size=40))
def test_no_segment_yields_what_is_no_id(segment: str) -> None:
    """Whatever a segment holds, the answer is an id or a Problem."""
    try:
        connection_id = connection_id_from(segment)
    except Problem:
        return
    assert CONNECTION_ID.fullmatch(connection_id)
