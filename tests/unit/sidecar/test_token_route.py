"""The short way of a token read: which requests it answers, and with which bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from daemon.config.settings import Caller, Permission
from daemon.domain.connection import Status
from daemon.domain.errors import Problem
from daemon.domain.tokens import CurrentToken
from daemon.sidecar.access import Callers
from daemon.sidecar.guard import Guard
from daemon.sidecar.token_route import TokenRoute, WholeResponse, read_parameters
from daemon.telemetry.token_reads import TokenReads
from tests.support.refreshing import Replica, tokens

HEADERS = {"Host": "127.0.0.1:7420", "Authorization": "Bearer key"}
PATH = "/v1/connections/acme-1/token"


async def nowhere(connection_id: str) -> str | None:
    """Know of no connection that was merged."""
    del connection_id
    return None


class Stage:
    """A route with one token in memory."""

    def __init__(self, *, life: float = 3600.0, status: Status = Status.ACTIVE) -> None:
        self.here = Replica()
        row = self.here.add(stored=tokens(life), status=status)
        self.here.cache.put(self._current(row.id))
        self.registry = CollectorRegistry()
        self.route = TokenRoute(
            callers=Callers(
                [
                    Caller(
                        name="billing",
                        key_sha256=hashlib.sha256(b"key").digest(),
                        connections=("acme-*",),
                        permissions=frozenset({Permission.TOKEN}),
                    )
                ]
            ),
            guard=Guard(),
            cache=self.here.cache,
            reader=self.here.reader,
            reads=TokenReads(self.registry, providers=["acme"]),
            survivor_of=nowhere,
            clock=self.here.clock,
        )

    def asked(
        self,
        path: str = PATH,
        *,
        method: str = "GET",
        is_http_10: bool = False,
        headers: dict[str, str] = HEADERS,
    ) -> WholeResponse | None:
        """Ask the short way."""
        version = HttpVersion10 if is_http_10 else HttpVersion11
        request = make_mocked_request(method, path, CIMultiDict(headers), version=version)
        answer = self.route.before_router(request)
        assert answer is None or isinstance(answer, WholeResponse)
        return answer

    def counted(self, outcome: str) -> float:
        """Return how many reads ended so."""
        labels = {"provider": "acme", "outcome": outcome}
        return self.registry.get_sample_value("tokenward_token_requests_total", labels) or 0.0

    def _current(self, name: str) -> CurrentToken:
        row = self.here.row(name)
        return CurrentToken(
            connection=name,
            provider="acme",
            status=row.status,
            generation=row.tokens.generation,
            access_token=row.tokens.access_token,
            token_type="Bearer",
            scopes=row.tokens.scopes,
            issued_at=row.tokens.issued_at,
            expires_at=row.tokens.expires_at,
            refreshable=True,
        )


def test_a_plain_read_is_answered_in_one_write() -> None:
    """The answer is a whole HTTP message, head and body, with the right length and date."""
    stage = Stage()
    answer = stage.asked()
    assert answer is not None
    head, _, body = answer._payload.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 200 OK"
    assert headers == {
        "Content-Type": "application/json; charset=utf-8",
        "Cache-Control": "no-store",
        "Date": "Sat, 21 Nov 2026 12:00:00 GMT",
        "Content-Length": str(len(body)),
    }
    assert json.loads(body)["access_token"] == "access 1"
    assert answer.keep_alive
    assert stage.counted("served") == 1
    assert stage.here.cache.take_used() == ["acme-1"]


def test_the_date_moves_on() -> None:
    """The date is that of the answer, though it is made once a second only."""
    stage = Stage()
    for elapsed in (0.0, 0.4, 0.8):
        stage.here.clock.advance(elapsed)
        answer = stage.asked()
        assert answer is not None
        second = int(stage.here.clock.elapsed)
        assert f"Date: Sat, 21 Nov 2026 12:00:0{second} GMT".encode() in answer._payload


def test_a_failing_connection_is_counted_as_warned() -> None:
    """A good token of a failing connection goes out with its warning, by the short way too."""
    stage = Stage(status=Status.FAILING)
    answer = stage.asked()
    assert answer is not None
    assert b'"warning":' in answer._payload
    assert stage.counted("warned") == 1


@pytest.mark.parametrize(
    ("path", "method"),
    [
        (f"{PATH}?min_ttl=60", "GET"),
        (f"{PATH}?", "GET"),
        (f"{PATH}?a=/v1/connections/acme-1/token", "GET"),
        ("/v1/connections/acme%2D1/token", "GET"),
        ("/v1/connections/nobody/token", "GET"),
        ("/v1/connections//token", "GET"),
        ("/v1/connections/token", "GET"),
        ("/v1/connections/acme-1/token/", "GET"),
        ("/v1/connections/acme-1", "GET"),
        ("//v1/connections/acme-1/token", "GET"),
        ("/V1/connections/acme-1/token", "GET"),
        (PATH, "POST"),
        (PATH, "HEAD"),
    ],
)
def test_everything_else_goes_the_long_way(path: str, method: str) -> None:
    """Whatever the short way does not know it leaves alone."""
    assert Stage().asked(path, method=method) is None


def test_older_http_goes_the_long_way() -> None:
    """Only HTTP/1.1 is answered in one write."""
    assert Stage().asked(is_http_10=True) is None


@pytest.mark.parametrize(
    "headers",
    [
        HEADERS | {"Authorization": "Bearer guess"},
        {"Host": "127.0.0.1"},
        HEADERS | {"Host": "evil.example"},
        HEADERS | {"Origin": "https://evil.example"},
    ],
)
def test_nobody_gets_past_the_checks(headers: dict[str, str]) -> None:
    """Who may not ask is left to the long way, which refuses all in the same words."""
    stage = Stage()
    assert stage.asked(headers=headers) is None
    assert stage.here.cache.take_used() == []


def test_an_expired_token_goes_the_long_way() -> None:
    """What is not good any more has to be refreshed first."""
    stage = Stage(life=10)
    stage.here.clock.advance(9.5)
    assert stage.asked() is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (0.0, None)),
        ("?min_ttl=0", (0.0, None)),
        ("?min_ttl=60", (60.0, None)),
        ("?min_ttl=3600000000", (3600000000.0, None)),
        ("?min_ttl=9223372036854775807", (float(2**63 - 1), None)),
        ("?newer_than=0", (0.0, 0)),
        ("?min_ttl=007&newer_than=9223372036854775807", (7.0, 2**63 - 1)),
    ],
)
def test_parameters(query: str, expected: tuple[float, int | None]) -> None:
    """Both parameters are whole numbers, and may be left out."""
    assert read_parameters(make_mocked_request("GET", PATH + query)) == expected


@pytest.mark.parametrize(
    "query",
    [
        *("min_ttl=-1", "min_ttl=+1", "min_ttl=1.0", "min_ttl=1e3", "min_ttl=", "min_ttl= 1"),
        *("min_ttl=1&min_ttl=1", "min_ttl=" + "0" * 20, "min_ttl=%D9%A1"),
        "min_ttl=9223372036854775808",
        *("newer_than=9223372036854775808", "newer_than=x", "newer_than=-1", "ttl=1", "Min_ttl=1"),
    ],
)
def test_bad_parameters(query: str) -> None:
    """Anything else is refused, in words that echo nothing."""
    with pytest.raises(Problem) as caught:
        read_parameters(make_mocked_request("GET", f"{PATH}?{query}"))
    assert (caught.value.status, caught.value.code) == (400, "bad_request")


def test_the_entry_is_the_newest() -> None:
    """A read after a change in memory has the new token at once."""
    stage = Stage()
    stage.here.row().tokens = tokens(generation=2)
    stage.here.cache.put(replace(stage._current("acme-1"), generation=2))
    answer = stage.asked()
    assert answer is not None
    assert b'"access 2"' in answer._payload
