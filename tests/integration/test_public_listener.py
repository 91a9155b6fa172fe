"""The public listener as browsers meet it: over a real socket, with the provider's part played."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientResponse, ClientSession, CookieJar, web
from aiohttp.web_urldispatcher import SystemRoute
from yarl import URL

from daemon.domain.connection import Status
from daemon.domain.fields import Field
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Endpoints
from daemon.oauth.authorization import fingerprint
from daemon.sidecar.public import PublicParts, create_public_app
from tests.support.authorization import ACME, ISSUER, PENDING, Flow, query_of
from tests.support.circles import circles_of
from tests.support.telemetry import captured_log

CANARIES = (
    "access-canary",
    "refresh-canary",
    "client-secret-canary",
    "code-canary",
    "<script>",
    "evil.example",
)


@dataclass
class Listener:
    """The running listener and a browser that follows no redirect by itself."""

    flow: Flow
    browser: ClientSession
    base: str
    return_urls: list[str]

    async def get(self, path: str, **options: Any) -> ClientResponse:
        """GET a path as it stands, without any repair of its encoding."""
        url = URL(path if path.startswith("http") else self.base + path, encoded=True)
        return await self.browser.get(url, allow_redirects=False, **options)

    async def post(self, path: str, **options: Any) -> ClientResponse:
        """POST to a path."""
        url = URL(path if path.startswith("http") else self.base + path, encoded=True)
        return await self.browser.post(url, allow_redirects=False, **options)

    async def started(self, *, return_url: str | None = None) -> str:
        """Press Connect; return the state that the provider is given."""
        pressed = await self.post(await self.flow.connect_url(return_url=return_url))
        assert pressed.status == 303, await pressed.text()
        return query_of(pressed.headers["Location"])["state"]

    async def raw(self, request: bytes) -> bytes:
        """Send bytes; return all that comes back."""
        parts = urlsplit(self.base)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with closing(writer):
            writer.write(request)
            return await asyncio.wait_for(reader.read(), 5)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    """A listener on a free port of loopback, whose public URL names that port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        base = f"http://127.0.0.1:{server.getsockname()[1]}"
        flow = Flow(public_url=base)
        return_urls: list[str] = []
        app = create_public_app(
            PublicParts(
                public_url=base,
                store=flow.store,
                authorizer=flow.authorizer,
                redirection=flow.redirection,
                failures=flow.failures,
                providers=flow.providers.get,
                return_urls=lambda: tuple(return_urls),
                clock=flow.clock,
                entropy=flow.entropy,
            )
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.SockSite(runner, server).start()
            async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as browser:
                yield Listener(flow, browser, base, return_urls)
        finally:
            await runner.cleanup()


async def page_of(response: ClientResponse, status: int) -> str:
    """Return the text of a page, which must be whole, harmless and free of secrets."""
    text = await response.text()
    assert response.status == status, text
    assert response.content_type == "text/html"
    headers = response.headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Referrer-Policy"] in {"no-referrer", "same-origin"}
    assert headers["Server"] == "tokenward"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self' data:;")
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert not any(name.lower().startswith("access-control") for name in headers)
    for needed in ("<!doctype html>", '<html lang="en">', "<main", "<h1>", "<title>"):
        assert needed in text
    for forbidden in (*CANARIES, "<script", "style=", "onclick", "https://", "{{"):
        assert forbidden not in text
    return text


async def test_connecting_from_the_first_page_to_the_last(listener: Listener) -> None:
    """Page, button, provider, callback, completed: the way everybody goes."""
    connect_url = await listener.flow.connect_url()

    page = await page_of(await listener.get(connect_url), 200)
    assert "billing" in page
    assert "acme" in page
    assert "auth.acme.example" in page
    assert PENDING.id in page
    assert all(f"<code>{scope}</code>" in page for scope in ("read", "write:all"))
    assert urlsplit(connect_url).path not in page

    pressed = await listener.post(connect_url)
    assert pressed.status == 303
    sent = query_of(pressed.headers["Location"])
    assert pressed.headers["Location"].startswith(f"{ISSUER}/authorize?")
    assert pressed.headers["Referrer-Policy"] == "no-referrer"
    assert pressed.headers["Cache-Control"] == "no-store"

    back = await listener.get(f"/callback?code=code-canary&state={sent['state']}&iss={ISSUER}")
    assert back.status == 303
    assert back.headers["Location"] == "/connect/completed"
    assert back.headers["Cache-Control"] == "no-store"

    done = await page_of(await listener.get("/connect/completed"), 200)
    assert "Authorization completed" in done
    assert listener.flow.store.connections[PENDING.id].status is Status.ACTIVE
    again = await page_of(await listener.get(connect_url), 404)
    assert "link_expired" in again


async def test_the_connect_page_may_lead_its_form_anywhere_it_must(listener: Listener) -> None:
    """Chromium holds redirects after a POST against form-action; a form needs a real Origin."""
    response = await listener.get(await listener.flow.connect_url())

    assert "form-action 'self' https: http:;" in response.headers["Content-Security-Policy"]
    assert response.headers["Referrer-Policy"] == "same-origin"


async def test_go_skips_the_page(listener: Listener) -> None:
    """``?go=1`` starts at once, as another application's own button wants it."""
    response = await listener.get(await listener.flow.connect_url() + "?go=1")

    assert response.status == 303
    assert response.headers["Location"].startswith(f"{ISSUER}/authorize?")
    assert "tokenward" in response.cookies


@pytest.mark.parametrize("query", ["?go=0", "?go=11", "?go", "?xgo=1"])
async def test_anything_but_go_1_shows_the_page(listener: Listener, query: str) -> None:
    """Only the promised word skips the page."""
    await page_of(await listener.get(await listener.flow.connect_url() + query), 200)


TENANTS = replace(
    ACME,
    issuer=None,
    endpoints=Endpoints(
        authorization="https://{region}.acme.example/authorize",
        token="https://{region}.acme.example/token",
    ),
    fields={
        "region": Field(name="region", title="Region", enum=("us", "eu"), default="us"),
        "team": Field(
            name="team", title="Team", help="Small letters only.", pattern=re.compile("[a-z]+")
        ),
    },
)


def form(**typed: str) -> dict[str, str]:
    """Return what a form sends where it says nothing of a field: an empty value."""
    return {"region": "", "team": "", **typed}


async def test_fields_are_asked_with_all_that_is_known_of_them(listener: Listener) -> None:
    """Title, help, choices, default, whether it must be; nothing more than a form is needed."""
    listener.flow.providers["acme"] = TENANTS

    page = await page_of(await listener.get(await listener.flow.connect_url()), 200)

    assert '<label for="field-region">Region <span class="need">(optional)</span></label>' in page
    assert "<option selected>us</option>" in page
    assert "<option>eu</option>" in page
    assert "Small letters only." in page
    assert 'aria-describedby="field-team-help"' in page
    assert "us.acme.example" in page


async def test_fields_decide_where_the_browser_goes(listener: Listener) -> None:
    """What was typed is in the URL, and waits with the transaction."""
    listener.flow.providers["acme"] = TENANTS

    data = form(region="eu", team=" tools ")
    pressed = await listener.post(await listener.flow.connect_url(), data=data)

    assert pressed.status == 303, await pressed.text()
    assert pressed.headers["Location"].startswith("https://eu.acme.example/authorize?")
    (pending,) = listener.flow.store.pending.values()
    assert pending.fields == {"region": "eu", "team": "tools"}


async def test_a_default_holds_where_nothing_was_typed(listener: Listener) -> None:
    """An empty form, and even none at all, is the default's."""
    listener.flow.providers["acme"] = TENANTS
    for options in ({"data": form()}, {}):
        pressed = await listener.post(await listener.flow.connect_url(), **options)
        assert pressed.headers["Location"].startswith("https://us.acme.example/authorize?")


async def test_what_cannot_stay_is_said_beside_its_field(listener: Listener) -> None:
    """422: a summary that leads to the fields, what was typed is still there, nothing began."""
    listener.flow.providers["acme"] = TENANTS
    url = await listener.flow.connect_url()

    response = await listener.post(url, data=form(region="mars", team="A <b>"))

    page = await page_of(response, 422)
    assert '<a href="#field-region">Region must be one of us, eu.</a>' in page
    assert '<a href="#field-team">Small letters only.</a>' in page
    assert 'role="alert" tabindex="-1" autofocus' in page
    assert 'value="A &lt;b&gt;"' in page
    assert page.count('aria-invalid="true"') == 2
    assert 'aria-describedby="field-team-error field-team-help"' in page
    assert "<title>Problem: " in page
    assert listener.flow.store.pending == {}
    again = await listener.post(url, data=form(region="eu", team="ab"))
    assert again.status == 303


async def test_a_required_field_must_be_filled_in(listener: Listener) -> None:
    """It is marked, and an empty one is refused in words."""
    needed = replace(TENANTS.fields["team"], required=True)
    listener.flow.providers["acme"] = replace(TENANTS, fields={**TENANTS.fields, "team": needed})
    url = await listener.flow.connect_url()

    assert "(required)" in await page_of(await listener.get(url + "?go=1"), 200)
    assert "Team is required." in await page_of(await listener.post(url, data=form()), 422)


async def test_a_field_that_a_url_needs_is_asked_for(listener: Listener) -> None:
    """Even where nobody said that it is required: without it there is nowhere to go."""
    region = Field(name="region", title="Region")
    listener.flow.providers["acme"] = replace(TENANTS, fields={"region": region})
    url = await listener.flow.connect_url()

    for typed in ("", "other.example/", "a.b"):
        page = await page_of(await listener.post(url, data={"region": typed}), 422)
        assert 'id="field-region-error"' in page
    assert (await listener.post(url, data={"region": "eu"})).status == 303


async def test_what_the_creator_gave_is_shown_and_not_asked(listener: Listener) -> None:
    """Nor can it be changed by whoever has the link."""
    listener.flow.providers["acme"] = TENANTS
    known = replace(PENDING, fields={"region": "eu", "team": "tools"}, status=Status.ACTIVE)
    listener.flow.store.connections[PENDING.id] = known
    url = await listener.flow.connect_url()

    page = await page_of(await listener.get(url), 200)
    pressed = await listener.post(url, data=form(region="us", team="other"))
    skipped = await listener.get(url + "?go=1")

    assert "<dt>Region</dt><dd>eu</dd>" in page
    assert "<input" not in page
    assert pressed.headers["Location"].startswith("https://eu.acme.example/authorize?")
    assert skipped.status == 303
    for pending in listener.flow.store.pending.values():
        assert pending.fields == {"region": "eu", "team": "tools"}


async def test_a_stored_value_that_is_not_allowed_any_more_is_asked_again(
    listener: Listener,
) -> None:
    """The configuration may have changed since it was stored."""
    listener.flow.providers["acme"] = TENANTS
    listener.flow.store.connections[PENDING.id] = replace(
        PENDING, fields={"region": "mars", "team": "tools", "gone": "x"}
    )

    page = await page_of(await listener.get(await listener.flow.connect_url()), 200)

    assert 'name="region"' in page
    assert 'name="team"' not in page
    assert "mars" not in page


async def test_go_skips_the_page_only_where_nothing_is_left_to_fill_in(listener: Listener) -> None:
    """A field with a default is nothing to fill in; an optional one without is."""
    listener.flow.providers["acme"] = replace(TENANTS, fields={"region": TENANTS.fields["region"]})
    skipped = await listener.get(await listener.flow.connect_url() + "?go=1")
    assert skipped.headers["Location"].startswith("https://us.acme.example/authorize?")

    listener.flow.providers["acme"] = TENANTS
    await page_of(await listener.get(await listener.flow.connect_url() + "?go=1"), 200)


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("application/x-www-form-urlencoded", b"region=us&region=eu", 400),
        ("application/x-www-form-urlencoded", b"region=%ff", 400),
        ("application/x-www-form-urlencoded", b"&".join([b"a%d=" % n for n in range(101)]), 400),
        ("application/x-www-form-urlencoded", b"region=" + b"x" * 100_000, 413),
    ],
)
async def test_odd_forms_are_refused_with_a_page(
    listener: Listener, content_type: str, body: bytes, status: int
) -> None:
    """Whatever arrives, the answer is a page and nothing begins."""
    listener.flow.providers["acme"] = TENANTS
    headers = {"Content-Type": content_type}

    await page_of(
        await listener.post(await listener.flow.connect_url(), data=body, headers=headers), status
    )

    assert listener.flow.store.pending == {}


@pytest.mark.parametrize(
    ("query", "named"),
    [("?connection=acme-9", True), ("?connection=%3Cb%3E", False), ("?connection=a%20b", False)],
)
async def test_the_last_page_names_the_connection_that_had_the_account(
    listener: Listener, query: str, *, named: bool
) -> None:
    """By its id and by nothing else that somebody may put into a link."""
    page = await page_of(await listener.get(f"/connect/completed{query}"), 200)

    assert "Authorization completed" in page
    assert ("connected already" in page) is named
    assert ("<code>acme-9</code>" in page) is named


async def test_the_return_url_gets_the_outcome(listener: Listener) -> None:
    """An allow-listed return URL is where a success ends."""
    listener.return_urls.append("https://app.example/*")
    state = await listener.started(return_url="https://app.example/done?x=1")

    back = await listener.get(f"/callback?code=c&state={state}")

    assert back.status == 303
    assert back.headers["Location"] == (
        "https://app.example/done?x=1&connection=acme-1&status=active"
    )


async def test_a_return_url_that_left_the_list_is_not_followed(listener: Listener) -> None:
    """A reload of the configuration counts at once."""
    state = await listener.started(return_url="https://app.example/done")

    back = await listener.get(f"/callback?code=c&state={state}")

    assert back.headers["Location"] == "/connect/completed"


async def test_two_tabs_of_one_browser_both_arrive(listener: Listener) -> None:
    """A browser keeps one binding value; only its hash is stored."""
    first, second = await listener.started(), await listener.started()
    bindings = {one.browser_hash for one in listener.flow.store.pending.values()}
    (cookie,) = listener.browser.cookie_jar

    assert bindings == {fingerprint(cookie.value)}
    for state in (second, first):
        assert (await listener.get(f"/callback?code=c&state={state}")).status == 303


async def test_another_browser_cannot_finish(listener: Listener) -> None:
    """A valid state without the cookie ends the transaction, and no code is sent."""
    state = await listener.started()
    listener.browser.cookie_jar.clear()

    page = await page_of(await listener.get(f"/callback?code=code-canary&state={state}"), 400)

    assert "other_browser" in page
    assert listener.flow.token_endpoint.sent == []


async def test_a_second_callback_is_told_that_it_is_over(listener: Listener) -> None:
    """The same URL twice: one token request, and a page for whoever comes second."""
    state = await listener.started()
    await listener.get(f"/callback?code=c&state={state}")

    page = await page_of(await listener.get(f"/callback?code=c&state={state}"), 400)

    assert "unknown_state" in page
    assert len(listener.flow.token_endpoint.sent) == 1


async def test_a_refusal_is_explained_with_a_reference(listener: Listener) -> None:
    """The provider's code, what it means, what to do, and a reference that the log has too."""
    state = await listener.started()

    page = await page_of(
        await listener.get(
            f"/callback?state={state}&error=access_denied"
            "&error_description=%3Cscript%3Ealert(1)%3C/script%3E%0d%0aSet-Cookie:%20x=1"
            "&error_uri=javascript:alert(1)//evil.example"
        ),
        400,
    )

    ((code, reference),) = listener.flow.events.failures
    assert code == "access_denied"
    assert reference in page
    assert "access_denied" in page
    assert "Access was not granted" in page
    assert "What to do" in page
    assert "alert" not in page


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?",
        "?code=c",
        "?code=c&state=STATE&state=STATE",
        "?code=a&code=b&state=STATE",
        "?code=&state=STATE",
        "?code[]=code-canary&state=STATE",
        "?code=c&error=access_denied&state=STATE",
        "?code=c&iss=https://a.example&iss=https://b.example&state=STATE",
        "?code=%00&state=STATE",
        "?code=%0d%0aX:1&state=STATE",
        "?code=%zz&state=STATE",
        "?code=%ED%A0%80&state=STATE",
        "?code=c&state=%3Cscript%3E",
        "?code=c&state=STATE&iss=https://evil.example",
        "?error=%3Cscript%3E&state=STATE",
    ],
)
async def test_a_bad_callback_is_a_page_and_never_a_token_request(
    listener: Listener, query: str
) -> None:
    """Status 400, a reference, nothing of the request in the page, nothing sent."""
    state = await listener.started()

    await page_of(await listener.get("/callback" + query.replace("STATE", state)), 400)

    assert len(listener.flow.events.failures) == 1
    assert listener.flow.token_endpoint.sent == []


async def test_every_bad_callback_looks_alike(listener: Listener) -> None:
    """But for its reference, the page does not depend on what was sent."""
    pages = {
        (await (await listener.get(f"/callback?{query}")).text()).replace(
            listener.flow.events.failures[-1][1], ""
        )
        for query in ("", "code=a", "state=b", "x=" + "y" * 3000, "error=%00")
    }

    assert len(pages) == 1


async def test_a_query_beyond_all_bounds_is_refused(listener: Listener) -> None:
    """64 KB of query get an answer of a few bytes, and nothing is looked up."""
    calls = len(listener.flow.store.calls)

    answer = await listener.raw(
        b"GET /callback?code=" + b"c" * 65536 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    )

    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 4"))
    assert len(answer) < 4096
    assert len(listener.flow.store.calls) == calls


async def test_a_form_post_becomes_a_get(listener: Listener) -> None:
    """A cross-site POST brings no Lax cookie: it is answered with a redirect that does."""
    state = await listener.started()
    form = {"code": "a/b c", "state": state, "iss": ISSUER, "session_state": "x"}

    posted = await listener.browser.post(
        f"{listener.base}/callback",
        data=form,
        cookies={},
        headers={"Origin": ISSUER, "Sec-Fetch-Site": "cross-site"},
        allow_redirects=False,
    )

    assert posted.status == 303
    location = posted.headers["Location"]
    assert query_of(location) == form
    assert location.startswith("/callback?")
    assert listener.flow.token_endpoint.sent == []
    assert (await listener.get(location)).headers["Location"] == "/connect/completed"
    assert listener.flow.token_endpoint.sent[0][2].code == "a/b c"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"code=a&code=b&state=" + b"s" * 43}, 400),
        ({"data": b"code=\xff&state=" + b"s" * 43}, 400),
        ({"data": b""}, 400),
        ({"data": b"code=" + b"c" * 8300}, 413),
        ({"json": {"code": "c"}}, 415),
    ],
)
async def test_a_bad_form_post_is_a_page(
    listener: Listener, options: dict[str, Any], status: int
) -> None:
    """What is no form of at most 8 KiB with one answer in it leads nowhere."""
    if "data" in options:
        options = {**options, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}

    await page_of(await listener.post("/callback", **options), status)


@pytest.mark.parametrize("path", ["/callback", "/connect/" + "t" * 43, "/connect/completed"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
async def test_other_methods_are_not_allowed(listener: Listener, path: str, method: str) -> None:
    """405 with the methods that are, and no state is used up."""
    response = await listener.browser.request(method, listener.base + path)

    assert response.status == 405
    assert "GET" in response.headers["Allow"]
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_foreign_page_cannot_press_connect(
    listener: Listener, headers: dict[str, str]
) -> None:
    """403, no transaction, no cookie."""
    response = await listener.post(await listener.flow.connect_url(), headers=headers)

    page = await page_of(response, 403)
    assert "cross_site_request" in page
    assert listener.flow.store.pending == {}
    assert not response.cookies


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:7421", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.", 421),
        ("localhost", 200),
        ("localhost:9999", 200),
        ("127.0.0.1", 200),
        ("[::1]:7421", 200),
    ],
)
async def test_only_our_own_names_are_answered_to(
    listener: Listener, host: str, status: int
) -> None:
    """A name that merely resolves to us is somebody else's (DNS rebinding)."""
    page = await page_of(await listener.get("/connect/completed", headers={"Host": host}), status)

    assert host not in page or status == 200


@pytest.mark.parametrize("ticket", ["x", "t" * 43, "%00", "..%2f..%2fetc", "%3Cscript%3E"])
async def test_an_unknown_link_says_to_ask_for_a_new_one(listener: Listener, ticket: str) -> None:
    """Expired, used, mistyped: one page, which does not repeat the link."""
    page = await page_of(await listener.get(f"/connect/{ticket}"), 404)

    assert "Ask for a new link" in page
    assert ticket not in page or ticket == "x"


async def test_a_link_expires_after_half_an_hour(listener: Listener) -> None:
    """Neither the page nor the button works any longer."""
    connect_url = await listener.flow.connect_url()
    listener.flow.clock.turn(timedelta(minutes=30))

    await page_of(await listener.get(connect_url), 404)
    await page_of(await listener.post(connect_url), 404)


async def test_a_link_works_again_until_the_connection_is_made(listener: Listener) -> None:
    """Whoever declines or loses the way may press Connect once more."""
    connect_url = await listener.flow.connect_url()
    for _ in range(2):
        assert (await listener.post(connect_url)).status == 303


def database_away(flow: Flow) -> None:
    """Take the database away."""
    flow.store.is_away = True


def metadata_away(flow: Flow) -> None:
    """Make the provider's metadata unreadable."""
    flow.resolver.is_away = True


def unconfigured(flow: Flow) -> None:
    """Remove the provider from the configuration."""
    flow.providers.clear()


def broken(flow: Flow) -> None:
    """Plant a programming error whose text holds a secret."""
    flow.store.errors = [ZeroDivisionError("code-canary")]


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (database_away, 503, "database_unavailable"),
        (metadata_away, 503, "provider_unavailable"),
        (unconfigured, 400, "provider_not_configured"),
        (broken, 500, "internal_error"),
    ],
)
async def test_trouble_here_is_a_page_too(
    listener: Listener, trouble: Callable[[Flow], None], status: int, code: str
) -> None:
    """Whatever is wrong when Connect is pressed, the person reads what it is and what to do."""
    connect_url = await listener.flow.connect_url()
    trouble(listener.flow)

    page = await page_of(await listener.post(connect_url), status)

    assert code in page
    assert "Reference" in page


async def test_a_callback_survives_a_database_outage(listener: Listener) -> None:
    """503 and nothing sent; reloading the page once the database is back completes it (K5)."""
    state = await listener.started()
    listener.flow.store.is_away = True

    page = await page_of(await listener.get(f"/callback?code=c&state={state}"), 503)
    listener.flow.store.is_away = False
    reloaded = await listener.get(f"/callback?code=c&state={state}")

    assert "reload this page" in page
    assert reloaded.status == 303
    assert len(listener.flow.token_endpoint.sent) == 1


async def test_an_unclear_exchange_is_not_repeated(listener: Listener) -> None:
    """The person is told to start again, which the same link allows."""
    listener.flow.token_endpoint.outcome = Outcome(
        kind=OutcomeKind.IN_DOUBT, reason=FailureReason.TIMEOUT
    )
    state = await listener.started()

    page = await page_of(await listener.get(f"/callback?code=c&state={state}"), 400)

    assert "exchange_in_doubt" in page
    assert "connect again" in page
    assert len(listener.flow.token_endpoint.sent) == 1


async def test_names_are_escaped(listener: Listener) -> None:
    """A caller, label or scope with markup in it is text."""
    nasty = "<script>alert('x')</script>&\""
    listener.flow.store.connections[PENDING.id] = replace(
        PENDING, label=nasty, requested_scopes=(nasty,), status=Status.FAILING
    )
    _, url = await listener.flow.authorizer.issue_ticket(PENDING, caller=nasty, return_url=None)

    page = await page_of(await listener.get(url), 200)

    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&#34;") >= 3
    assert "Reconnect" in page


async def test_a_connection_without_scopes_says_so(listener: Listener) -> None:
    """No empty list is shown where nothing is asked for by name."""
    listener.flow.providers["acme"] = replace(ACME, scopes=())
    listener.flow.store.connections[PENDING.id] = replace(PENDING, requested_scopes=())

    page = await page_of(await listener.get(await listener.flow.connect_url()), 200)

    assert "None by name" in page
    assert "<ul" not in page


async def test_the_pages_assets_are_here_and_nothing_else(listener: Listener) -> None:
    """Stylesheet and picture come from this listener; a path cannot leave their folder."""
    page = await (await listener.get("/connect/completed")).text()
    links = [part.partition('"')[0] for part in page.split('href="')[1:]]

    assert len(links) == 2
    for link in links:
        response = await listener.get(link)
        assert response.status == 200
        assert response.content_type in {"text/css", "image/svg+xml"}
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/connect/static/", "/connect/static/..%2fpages.py", "/v1/connections", "/"):
        assert (await listener.get(path)).status == 404


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nothing"), ("POST", "/connect/completed"), ("POST", "/callback")]
)
async def test_strangers_leave_no_circles(listener: Listener, method: str, path: str) -> None:
    """Some thousand wrong requests would else stop everybody for the garbage collector."""
    with circles_of(web.Request, web.HTTPException, SystemRoute) as left:
        for _ in range(10):
            async with listener.browser.request(method, listener.base + path) as response:
                assert response.status in {404, 405, 415}
    assert left == []


async def test_a_visitor_who_leaves_is_no_error(listener: Listener) -> None:
    """In the middle of a form: nobody is to be told, and the log is not for strangers to fill."""
    head = (
        b"POST /callback HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n\r\ncode=some"
    )
    parts = urlsplit(listener.base)
    with captured_log() as captured:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(head)
        await writer.drain()
        # The handler is at the body once another request has been answered.
        await listener.get("/connect/completed")
        writer.transport.abort()
        await asyncio.wait_for(reader.read(), 5)
        await listener.get("/connect/completed")
    assert "request_failed" not in captured.text()
