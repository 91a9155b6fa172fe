"""The callback's fault catalogue (K1 to K5) as data: raw requests, and what may follow each.

Every line of ``tests/corpora/callbacks.json`` goes over a real socket to the public listener's
application, whose token requests go over another to a server that counts them.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from daemon.config.settings import Address
from daemon.domain.provider import Endpoints
from daemon.oauth.authorization import fingerprint
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.sidecar.listener import Listener
from daemon.sidecar.public import PublicParts, create_public_app
from daemon.sidecar.room import Limits
from tests.support.authorization import ACME, ISSUER, Flow, SteppedClock
from tests.support.raw_client import Answer, RawClient
from tests.support.raw_server import replies
from tests.support.token_server import TokenServer, refuses, says

CORPUS = Path(__file__).parent.parent / "corpora" / "callbacks.json"
LINES: list[dict[str, Any]] = json.loads(CORPUS.read_text())
# What requests of the corpus carry and no answer may repeat.
REFLECTED = ("canary", "<script", "evil.example", "javascript:", "X-Injected", "alert(")
# As the daemon has it: a callback's line may be longer than its 8 KiB of query.
LINE = 16 * 1024
_REPEATED = re.compile(r"@([^@*]+)\*([0-9]+)@")
_CODE = re.compile(rb"<dt>Code</dt><dd><code>([A-Za-z0-9_.-]{1,64})</code>")
_REFERENCE = re.compile(rb"<dt>Reference</dt><dd><code>[A-Z2-7]{10}</code>")
MISBEHAVIOUR: dict[str, Callable[[TokenServer], Any]] = {
    "grants": lambda server: server.grant,
    "invalid_grant": lambda _: refuses("invalid_grant"),
    "invalid_client": lambda _: refuses("invalid_client", status=401),
    "500": lambda _: replies(b"canary", status="500 Whatever"),
    "302": lambda _: replies(b"", "Location: https://evil.example/", status="302 Found"),
    "html": lambda _: replies(b"<html>canary</html>", "Content-Type: text/html"),
    "no token": lambda _: says(200, {"token_type": "Bearer"}),
    "error 200": lambda _: says(200, {"error": "access_denied", "error_description": "canary"}),
    "strange error": lambda _: refuses("<script>alert(1)</script>"),
}


# No page grows with what was sent.
LARGEST_PAGE = 4096
AWAY: dict[str, Callable[[Flow], object]] = {
    "nothing": lambda _: None,
    "provider": lambda flow: flow.providers.clear(),
    "connection": lambda flow: flow.store.connections.clear(),
    "metadata": lambda flow: setattr(flow.resolver, "is_away", True),
    "database": lambda flow: setattr(flow.store, "is_away", True),
    "database after the exchange": lambda flow: setattr(flow.store, "interruptions", 10**9),
    "disk": lambda flow: setattr(flow.journal, "is_full", True),
}


@dataclass
class Stage:
    """The listener, a transaction of this browser's, one of another's, and a used one."""

    flow: Flow
    server: TokenServer
    port: int
    names: dict[str, str] = field(default_factory=dict)
    binding: str = ""

    async def begin(self) -> None:
        """Start the transactions that a line of the corpus may name."""
        provider = self.flow.providers["acme"]
        self.names["used"], self.binding = await self.flow.begun(provider)
        await self.flow.store.consume(fingerprint(self.names["used"]))
        self.names["theirs"], self.names["their_binding"] = await self.flow.begun(provider)
        self.names["state"], self.binding = await self.flow.begun(provider)
        self.names["unknown"] = "u" * 43
        self.names["iss"] = "https%3A%2F%2Fauth.acme.example"

    def filled(self, text: str) -> str:
        """Return ``text`` with each ``@name@`` replaced, and each ``@text*times@``."""
        for name, value in self.names.items():
            text = text.replace(f"@{name}@", value)
        return _REPEATED.sub(lambda match: match[1] * int(match[2]), text)

    async def ask(self, line: dict[str, Any]) -> Answer:
        """Send the request of a line; a ``form_post`` is followed as a browser would."""
        cookies = {
            "same": f"tokenward={self.binding}",
            "other": f"tokenward={self.names['their_binding']}",
            "broken": "tokenward=short",
            "two": f"tokenward={self.names['their_binding']}; tokenward={self.binding}",
        }
        browser = line.get("browser", "same")
        headers = [f"Cookie: {cookies[browser]}"] if browser in cookies else []
        headers += line.get("headers", [])
        target = f"/callback?{self.filled(line['query'])}"
        if "form" not in line:
            return await self._send(
                target, headers, line.get("method", "GET"), host=line.get("host")
            )
        form = self.filled(line["form"]).encode("latin-1")
        kind = "Content-Type: application/x-www-form-urlencoded"
        # A cross-site POST carries no Lax cookie; the redirect that answers it does.
        answer = await self._send(target, [kind], "POST", body=form)
        place = answer.headers.get("location", "")
        is_ours = place.startswith("/callback?")
        return await self._send(place, headers, "GET") if is_ours else answer

    async def _send(
        self,
        target: str,
        headers: list[str],
        method: str,
        *,
        body: bytes = b"",
        host: str | None = None,
    ) -> Answer:
        async with await RawClient.connect(self.port) as client:
            client.request(
                target,
                "Connection: close",
                *headers,
                method=method,
                body=body,
                host=host or "127.0.0.1",
            )
            return await client.answer(has_body=method != "HEAD")


@pytest.fixture(scope="module")
def ssl_context() -> ssl.SSLContext:
    """One for all lines: it takes longer to make than a line takes to run."""
    return ssl.create_default_context()


@pytest.fixture
async def stage(
    request: pytest.FixtureRequest, ssl_context: ssl.SSLContext
) -> AsyncIterator[Stage]:
    """The listener for one line, with its token server and its provider."""
    line: dict[str, Any] = request.param
    clock = SteppedClock()
    async with AsyncExitStack() as open_parts:
        server = await open_parts.enter_async_context(TokenServer())
        server.answer = MISBEHAVIOUR[line.get("answer", "grants")](server)
        outbound = await open_parts.enter_async_context(Outbound(ssl_context=ssl_context))
        endpoints = Endpoints(authorization=f"{ISSUER}/authorize", token=server.url())
        provider = replace(ACME, endpoints=endpoints, requires_iss=line.get("requires_iss", False))
        flow = Flow(
            public_url="http://127.0.0.1",
            clock=clock,
            providers={"acme": provider},
            exchange=TokenEndpoint(session=outbound, clock=clock),
        )
        app = create_public_app(
            PublicParts(
                public_url=flow.public_url,
                store=flow.store,
                authorizer=flow.authorizer,
                redirection=flow.redirection,
                failures=flow.failures,
                providers=flow.providers.get,
                return_urls=tuple,
                clock=clock,
                entropy=flow.entropy,
            )
        )
        listener = Listener(app, name="public", entropy=flow.entropy, limits=Limits(line_size=LINE))
        await listener.start(address=Address("127.0.0.1", 0))
        open_parts.push_async_callback(listener.stop)
        made = Stage(flow, server, listener.addresses[0].port)
        await made.begin()
        yield made


def test_the_corpus_covers_the_catalogue() -> None:
    """At least 150 lines, none twice, and each row of the catalogue among them."""
    requests = [json.dumps({**line, "expect": None}, sort_keys=True) for line in LINES]

    assert len(LINES) >= 150
    assert len(set(requests)) == len(LINES)
    assert {line["row"] for line in LINES} == {"K1", "K2", "K3", "K4", "K5"}


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        pytest.param(line, line, id=f"{number}-{line['row']}")
        for number, line in enumerate(LINES, 1)
    ],
    indirect=["stage"],
)
async def test_a_callback_of_the_corpus(stage: Stage, line: dict[str, Any]) -> None:
    """K1-K5: status and code as listed, no more token requests than listed, nothing reflected.

    ``left`` tells whether the transaction still stands afterwards: only where the request named
    none, or nobody could be asked.
    """
    flow = stage.flow
    flow.clock.turn(timedelta(seconds=line.get("age", 0)))
    AWAY[line.get("without", "nothing")](flow)

    if "at_once" in line:
        answers = list(await asyncio.gather(*(stage.ask(line) for _ in range(line["at_once"]))))
    else:
        answers = [await stage.ask(line) for _ in range(line.get("times", 1))]

    got = [[answer.status, _code(answer)] for answer in answers]
    expected = _expected(line)
    # Of those at once, which one is first is nobody's business.
    assert (sorted(got) if "at_once" in line else got) == expected
    assert len(stage.server.seen) == line.get("sent", 0)
    pending = fingerprint(stage.names["state"]) in flow.store.pending
    assert pending == line.get("left", False)
    for answer in answers:
        _is_harmless(answer)


def _expected(line: dict[str, Any]) -> list[list[Any]]:
    expect = line["expect"]
    several = expect if isinstance(expect[0], list) else [expect]
    return sorted(several) if "at_once" in line else several


def _code(answer: Answer) -> str | None:
    """Return what the answer says: a failure's code, or that all is done."""
    if answer.status == HTTPStatus.SEE_OTHER:
        return answer.headers["location"].removeprefix("/connect/")
    found = _CODE.search(answer.body)
    return None if found is None else found[1].decode()


def _is_harmless(answer: Answer) -> None:
    """Nothing of a request is in its answer, whose pages differ by their reference only."""
    head = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
    text = head + answer.body.decode()
    assert not [mark for mark in REFLECTED if mark in text]
    assert "x-injected" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    if _CODE.search(answer.body):
        assert _REFERENCE.search(answer.body)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert len(answer.body) < LARGEST_PAGE
