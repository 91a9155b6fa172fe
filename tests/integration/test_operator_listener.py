"""The operator pages as a browser meets them, over a real socket."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientResponse, ClientSession, CookieJar

from daemon.config.settings import Settings
from daemon.domain.connection import Status
from daemon.domain.errors import Problem
from daemon.domain.revocation import RevocationResult
from tests.support.operator_stage import (
    ACME,
    ADMIN,
    KEYS,
    VIEWER,
    OperatorStage,
    connection,
    operator_stage,
)

GATED = ("/", "/connections", "/connections/acme-1", "/providers", "/connect", "/logout")
DEEDS = ("test", "refresh", "reconnect", "disconnect")


class Person:
    """A browser that follows no redirect by itself, and reads pages."""

    def __init__(self, stage: OperatorStage, session: ClientSession) -> None:
        self.stage = stage
        self.session = session
        self.csrf = ""

    async def get(self, path: str, **headers: str) -> ClientResponse:
        """Open a page."""
        url = self.stage.url + path
        return await self.session.get(url, allow_redirects=False, headers=headers)

    async def page(self, path: str, status: int = 200) -> str:
        """Open a page; return its text, which must be whole, harmless and free of secrets."""
        return await read(await self.get(path), status)

    async def post(self, path: str, headers: Any = None, **form: str) -> ClientResponse:
        """Send a form, as a page of ours would."""
        sent = {"Origin": self.stage.url, "Sec-Fetch-Site": "same-origin", **(headers or {})}
        return await self.session.post(
            self.stage.url + path, data=form, headers=sent, allow_redirects=False
        )

    async def press(self, path: str, **form: str) -> str:
        """Press a button; return where that leads."""
        answer = await self.post(path, csrf=self.csrf, **form)
        assert answer.status == 303, await answer.text()
        return answer.headers["Location"]

    async def log_in(self, name: str = "admin") -> None:
        """Log in and remember what forms need."""
        answer = await self.post("/login", key=KEYS[name])
        assert answer.status == 303, await answer.text()
        found = re.search(r'name="csrf" value="([0-9a-f]{64})"', await self.page("/connections"))
        assert found is not None
        self.csrf = found[1]


async def read(answer: ClientResponse, status: int) -> str:
    """Return a page's text after a look at what every page must keep to."""
    text = await answer.text()
    assert answer.status == status, text
    assert answer.content_type == "text/html"
    headers = answer.headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; img-src 'self'; script-src 'self'; "
        "form-action 'self' http://localhost:7421; frame-ancestors 'none'; base-uri 'none'"
    )
    assert not any(name.lower().startswith("access-control") for name in headers)
    for needed in ("<!doctype html>", '<html lang="en">', '<main id="main"', "<h1>", "<title>"):
        assert needed in text
    for forbidden in ("canary", "style=", "onclick", "javascript:", "{{", "<script>"):
        assert forbidden not in text
    return text


@pytest.fixture
async def stage() -> AsyncIterator[OperatorStage]:
    """The pages, running."""
    async with operator_stage() as running:
        yield running


@pytest.fixture
async def person(stage: OperatorStage) -> AsyncIterator[Person]:
    """Somebody who is not logged in."""
    async with ClientSession(cookie_jar=CookieJar(unsafe=True)) as session:
        yield Person(stage, session)


@pytest.fixture
async def operator(person: Person) -> Person:
    """Somebody who may do everything."""
    await person.log_in()
    return person


@pytest.mark.parametrize("path", GATED)
async def test_nothing_is_shown_before_a_login(person: Person, path: str) -> None:
    """303 to the login page, which knows where to go afterwards."""
    answer = await person.get(path)
    assert answer.status == 303
    location = answer.headers["Location"]
    assert urlsplit(location).path == "/login"
    assert "Log in" in await person.page(location)


@pytest.mark.parametrize("deed", DEEDS)
async def test_nothing_is_done_before_a_login(person: Person, deed: str) -> None:
    """A button pressed after the session's end leads to the login page."""
    assert await person.press(f"/connections/acme-1/{deed}") == "/login?said=session_over"
    assert person.stage.behind.done == []


async def test_a_login_leads_to_where_one_wanted_to_go(person: Person) -> None:
    """The cookie is strict, http only, and ends by itself."""
    answer = await person.post("/login", key=f" {KEYS['admin']}\n", next="/connections/acme-1")
    assert answer.status == 303
    assert answer.headers["Location"] == "/connections/acme-1"
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("tokenward_session=")
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
        assert attribute in cookie
    assert "Secure" not in cookie
    again = await person.get("/login")
    assert again.headers["Location"] == "/connections"


@pytest.mark.parametrize(
    "onward",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "/v1/connections", "x", ""],
)
async def test_a_login_leads_to_no_other_place(person: Person, onward: str) -> None:
    """Only to pages of ours."""
    answer = await person.post("/login", key=KEYS["admin"], next=onward)
    assert answer.headers["Location"] == "/connections"


async def test_a_wrong_key_is_refused_in_words(person: Person) -> None:
    """And not repeated on the page; no cookie is set."""
    answer = await person.post("/login", key="wrong-canary")
    page = await read(answer, 403)
    assert 'role="alert"' in page
    assert "not known" in page
    assert "Set-Cookie" not in answer.headers


async def test_many_wrong_keys_are_not_even_looked_at(person: Person) -> None:
    """429 with the seconds to wait, for a right one too; then it goes on."""
    for _ in range(10):
        assert (await person.post("/login", key="wrong")).status == 403
    refused = await person.post("/login", key=KEYS["admin"])
    assert "Too many" in await read(refused, 429)
    person.stage.clock.advance(float(refused.headers["Retry-After"]))
    assert (await person.post("/login", key=KEYS["admin"])).status == 303


async def test_a_key_that_may_not_read_opens_nothing(person: Person) -> None:
    """It is told so: the key is right, its permission is missing."""
    answer = await person.post("/login", key=KEYS["tokens"])
    assert "lacks the permission" in await read(answer, 403)
    assert "Set-Cookie" not in answer.headers


async def test_logging_out(operator: Person) -> None:
    """Ends the session also for whoever copied its cookie."""
    (cookie,) = operator.session.cookie_jar
    assert await operator.press("/logout") == "/login?said=logged_out"
    assert "You are logged out." in await operator.page("/login?said=logged_out")
    operator.session.cookie_jar.update_cookies({cookie.key: cookie.value})
    assert (await operator.get("/connections")).status == 303


async def test_a_link_ends_no_session(operator: Person) -> None:
    """Only the button does."""
    assert (await operator.get("/logout")).headers["Location"] == "/connections"
    await operator.page("/connections")


async def test_a_removed_caller_sees_nothing_more(operator: Person) -> None:
    """From the next request on."""
    operator.stage.callers.replace([VIEWER])
    answer = await operator.get("/connections")
    assert answer.headers["Location"] == "/login?said=session_over&next=/connections"


async def test_the_list_shows_every_state_in_words(operator: Person) -> None:
    """Colour, label, provider, account, times, and the last error with what to do."""
    page = await operator.page("/")
    for words in (
        '<span class="badge good">Active, in use</span>',
        '<span class="badge warn">Active, not used yet</span>',
        '<span class="badge warn">Refresh is failing</span>',
        '<span class="badge bad">Reconnect needed</span>',
        '<span class="badge bad">Expired, reconnect</span>',
        '<span class="badge idle">Not authorized yet</span>',
        '<span class="badge idle">Disconnected</span>',
        "Ada Lovelace (ada@acme.example)",
        "10001",
        ">in 42 min</time>",
        'title="2026-11-21 12:42:00 UTC"',
        ">in 30 min</time>",
        "no longer accepts this grant",
        "Press Reconnect",
    ):
        assert words in page
    assert page.count('scope="row"') == len(operator.stage.behind.connections)


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("?q=ada", {"acme-1"}),
        ("?q=10002", {"acme-2"}),
        ("?q=+acme-3+", {"acme-3"}),
        ("?status=pending", {"acme-5"}),
        ("?provider=plain&q=&status=", {"plain-7"}),
        ("?provider=acme&status=disconnected", {"acme-6"}),
        ("?q=nothing", set()),
    ],
)
async def test_the_list_is_narrowed(operator: Person, query: str, ids: set[str]) -> None:
    """By text, provider and state; the form keeps what was asked."""
    page = await operator.page(f"/connections{query}")
    assert set(re.findall(r'href="/connections/([^"]+)"', page)) == ids
    assert "Show all" in page


async def test_a_search_is_text(operator: Person) -> None:
    """Markup in it is shown as it is."""
    page = await operator.page("/connections?q=%3Cscript%3Ealert(1)%3C/script%3E")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


async def test_the_list_goes_on_behind_a_cursor(operator: Person) -> None:
    """Fifty at a time, newest first, and the search goes along."""
    behind = operator.stage.behind
    behind.connections = {name: connection(name) for name in (f"acme-{n:03}" for n in range(120))}
    seen: list[str] = []
    path = "/connections?q=acme"
    for left in (True, True, False):
        page = await operator.page(path)
        seen += re.findall(r'href="/connections/([^"]+)"', page)
        found = re.search(r'href="([^"]+)" rel="next"', page)
        assert (found is not None) is left
        path = found[1].replace("&amp;", "&") if found else ""
        assert "q=acme" in path or not left
    assert seen == sorted(behind.connections, reverse=True)


@pytest.mark.parametrize("query", ["?cursor=x", "?status=happy", "?q=%00"])
async def test_an_odd_search_is_a_page_too(operator: Person, query: str) -> None:
    """400, and a way back."""
    assert "All connections" in await operator.page(f"/connections{query}", 400)


async def test_one_connection(operator: Person) -> None:
    """All that is known of it, its history, and what can be done."""
    page = await operator.page("/connections/acme-1")
    for words in (
        "Ada Lovelace (ada@acme.example)",
        "<dt>Region</dt><dd>eu</dd>",
        "<dt>metadata.plan</dt><dd>gold</dd>",
        "offline_access",
        "Token refreshed",
        "Test failed",
        "server_error",
        "2026-11-21 03:00:00 UTC",
        "Get a link to send",
        "Disconnect…",
    ):
        assert words in page
    assert "disabled" not in page


async def test_the_curl_command_holds_no_key(operator: Person) -> None:
    """It reads the key from where it is kept, quoted for a shell."""
    page = await operator.page("/connections/acme-1")
    host = urlsplit(operator.stage.url).netloc
    wanted = (
        "curl -s -H &#34;Authorization: Bearer $(cat &#39;/var/lib/token ward/api.key&#39;)&#34;"
        f" http://{host}/v1/connections/acme-1/token"
    )
    assert wanted in page
    operator.stage.settings = replace(operator.stage.settings, callers=(ADMIN,))
    assert "Bearer $TOKENWARD_KEY" in await operator.page("/connections/acme-1")


@pytest.mark.parametrize(
    ("name", "disabled"),
    [
        ("acme-1", []),
        ("acme-4", ["test", "refresh"]),
        ("acme-5", ["test", "refresh"]),
        ("plain-7", ["test"]),
        ("con_0123456789ABCDEFabcdef", ["refresh"]),
    ],
)
async def test_what_is_not_possible_says_why(
    operator: Person, name: str, disabled: list[str]
) -> None:
    """A button that cannot be pressed names its reason."""
    page = await operator.page(f"/connections/{name}")
    assert re.findall(r'id="do-(\w+)" disabled', page) == disabled
    assert re.findall(r'id="no-(\w+)"', page) == disabled


async def test_a_long_history_goes_on(operator: Person) -> None:
    """Fifty events at a time."""
    (first,) = operator.stage.behind.events["acme-1"][:1]
    operator.stage.behind.events["acme-1"] = [replace(first, id=n) for n in range(60, 0, -1)]
    page = await operator.page("/connections/acme-1")
    assert 'href="/connections/acme-1?before=11#history"' in page
    older = await operator.page("/connections/acme-1?before=11")
    assert older.count("Works again") == 10
    assert "Older events" not in older


@pytest.mark.parametrize("before", ["x", "-1", "9" * 30, ""])
async def test_an_odd_place_in_the_history_is_its_beginning(operator: Person, before: str) -> None:
    """Nobody types these; nothing breaks."""
    assert "Works again" in await operator.page(f"/connections/acme-1?before={before}")


@pytest.mark.parametrize(
    "path", ["/connections/none", "/connections/%3Cb%3E", "/connections/..%2fx", "/connections/a b"]
)
async def test_an_unknown_connection(operator: Person, path: str) -> None:
    """404, the same for every id that leads nowhere."""
    assert "There is no such connection" in await operator.page(path, 404)


async def test_a_merged_connection_leads_to_the_other(operator: Person) -> None:
    """Whose account is the same."""
    operator.stage.behind.merged["old"] = "acme-1"
    page = await operator.page("/connections/old", 404)
    assert '<a href="/connections/acme-1">Go to acme-1</a>' in page


@pytest.mark.parametrize(
    ("ok", "said"), [(True, "The test passed"), (False, "The test failed")], ids=["ok", "failed"]
)
async def test_the_test_button(operator: Person, *, ok: bool, said: str) -> None:
    """The page that follows says how it went."""
    operator.stage.behind.test_ok = ok
    location = await operator.press("/connections/acme-1/test")
    assert said in await operator.page(location)
    assert operator.stage.behind.done == [("test", "acme-1")]


async def test_the_refresh_button(operator: Person) -> None:
    """As a person's own wish: nothing but the rate may stand in its way."""
    location = await operator.press("/connections/acme-1/refresh")
    assert "The token was refreshed." in await operator.page(location)
    assert operator.stage.behind.done == [("refresh", "acme-1")]


@pytest.mark.parametrize(
    "problem",
    [
        Problem(503, "token_unavailable", "Not now.", retry_after=3),
        Problem(409, "reauthorization_required", "Dead."),
    ],
)
async def test_a_deed_that_needs_a_token_and_has_none(operator: Person, problem: Problem) -> None:
    """Is told beside the connection, whose last error says why."""
    operator.stage.behind.problem = problem
    assert await operator.press("/connections/acme-1/test") == "/connections/acme-1?said=not_tested"
    location = await operator.press("/connections/acme-1/refresh")
    assert location == "/connections/acme-1?said=not_refreshed"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (RevocationResult.REVOKED, "has revoked the tokens"),
        (RevocationResult.QUEUED, "tried again for 7 days"),
        (RevocationResult.UNSUPPORTED, "withdraw the access"),
    ],
)
async def test_disconnecting_asks_first(
    operator: Person, result: RevocationResult, words: str
) -> None:
    """And then says what the provider knows of it."""
    operator.stage.behind.revocation = result
    asked = await operator.page("/connections/acme-1/disconnect")
    assert "Keep it" in asked
    assert operator.stage.behind.done == []
    page = await operator.page(await operator.press("/connections/acme-1/disconnect"))
    assert words in page
    assert ">Disconnected</span>" in page
    assert operator.stage.behind.done == [("disconnect", "acme-1")]


async def test_removing_leaves_nothing(operator: Person) -> None:
    """The list is what is left to look at."""
    location = await operator.press("/connections/acme-6/disconnect", purge="on")
    assert "are removed" in await operator.page(location)
    assert operator.stage.behind.done == [("purge", "acme-6")]
    await operator.page("/connections/acme-6", 404)


async def test_reconnect_goes_to_the_connect_page(operator: Person) -> None:
    """Or gives a link for whoever owns the account, which is in no address of ours."""
    connect_url = f"http://localhost:7421/connect/{'t' * 43}"
    assert await operator.press("/connections/acme-4/reconnect") == connect_url
    answer = await operator.post("/connections/acme-4/reconnect", csrf=operator.csrf, how="link")
    page = await read(answer, 200)
    assert f'href="{connect_url}"' in page
    assert "30 minutes" in page


async def test_connecting_an_account(operator: Person) -> None:
    """Provider and id are chosen; what follows is the connect page, or a link to it."""
    assert "<option selected>plain</option>" in await operator.page("/connect?provider=plain")
    location = await operator.press("/connect", provider="acme", id=" new-1 ")
    assert location.startswith("http://localhost:7421/connect/")
    answer = await operator.post("/connect", csrf=operator.csrf, provider="acme", id="", how="link")
    assert "A link to send" in await read(answer, 200)
    assert operator.stage.behind.done == [
        ("create", "admin acme new-1"),
        ("create", "admin acme con_generated"),
    ]


@pytest.mark.parametrize(
    ("form", "problem", "words"),
    [
        ({"provider": "", "id": ""}, None, "Choose a provider."),
        ({"provider": "gone", "id": "x"}, None, "Choose a provider."),
        ({"provider": "acme", "id": "a/b"}, None, "An id begins with"),
        ({"provider": "acme", "id": "-x"}, None, "An id begins with"),
        (
            {"provider": "acme", "id": "acme-1"},
            Problem(409, "connection_exists", "It is taken."),
            "It is taken.",
        ),
        (
            {"provider": "acme", "id": "other"},
            Problem(403, "permission_denied", "Not yours."),
            "Not yours.",
        ),
    ],
)
async def test_what_cannot_be_connected_is_said_on_the_form(
    operator: Person, form: dict[str, str], problem: Problem | None, words: str
) -> None:
    """With what was typed."""
    operator.stage.behind.problem = problem
    answer = await operator.post("/connect", csrf=operator.csrf, **form)
    page = await read(answer, problem.status if problem else 422)
    assert words in page
    assert f'value="{form["id"]}"' in page


async def test_providers_say_what_to_register(operator: Person) -> None:
    """The redirect URI, scopes and fields; no secret, and no query of a URL."""
    page = await operator.page("/providers")
    for words in (
        "http://localhost:7421/callback",
        "our-client-id",
        "offline_access",
        "optional; one of us, eu; default us",
        "https://{region}.acme.example/token",
        "*.acme-files.example",
    ):
        assert words in page


async def test_without_providers_the_pages_say_what_to_do() -> None:
    """A fresh installation is no dead end."""
    async with (
        operator_stage(settings=Settings(state_dir=Path("/var/lib/tokenward"))) as stage,
        ClientSession(cookie_jar=CookieJar(unsafe=True)) as session,
    ):
        stage.behind.connections = {}
        person = Person(stage, session)
        await person.log_in()
        assert "There is no connection yet" in await person.page("/")
        for path in ("/providers", "/connect"):
            assert "No provider is configured yet" in await person.page(path)


async def test_whoever_may_only_look_sees_no_buttons(person: Person) -> None:
    """Nor other connections than theirs; a forged button does nothing."""
    await person.log_in("viewer")
    listed = await person.page("/connections")
    assert "plain-7" not in listed
    assert 'href="/connect"' not in listed
    page = await person.page("/connections/acme-1")
    assert "lacks the permission <code>manage</code>" in page
    assert 'action="/connections/acme-1/' not in page
    await person.page("/connections/plain-7", 404)
    await person.page("/connections/acme-1/disconnect", 403)
    await person.page("/connect", 403)
    for deed in DEEDS:
        answer = await person.post(f"/connections/acme-1/{deed}", csrf=person.csrf)
        assert "may not do that" in await read(answer, 403)
    assert person.stage.behind.done == []


@pytest.mark.parametrize("csrf", ["", "0" * 64, "ä"])
@pytest.mark.parametrize("path", ["/connections/acme-1/disconnect", "/connect"])
async def test_a_form_that_is_not_ours_does_nothing(operator: Person, path: str, csrf: str) -> None:
    """Nothing but a page of this session can know what stands in its forms."""
    answer = await operator.post(path, csrf=csrf, provider="acme")
    assert answer.headers["Location"] == "/connections?said=form_outdated"
    assert operator.stage.behind.done == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_sites_form_does_nothing(operator: Person, headers: dict[str, str]) -> None:
    """Even with the session's cookie and its token: 403, and a page that says so."""
    answer = await operator.post(
        "/connections/acme-1/disconnect", csrf=operator.csrf, headers=headers
    )
    assert "Another site sent your browser here" in await read(answer, 403)
    assert operator.stage.behind.done == []


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost."])
async def test_other_names_are_not_answered_to(operator: Person, host: str) -> None:
    """A name that merely resolves to us is somebody else's (DNS rebinding)."""
    page = await read(await operator.get("/connections", Host=host), 421)
    assert "Logged in" not in page


async def test_the_cookie_opens_no_route_of_callers(operator: Person) -> None:
    """The session is for pages alone; the API's own door asks for a key."""
    answer = await operator.get("/v1/connections")
    assert answer.status == 401
    assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize("path", ["/connections/../v1/connections", "/%76%31/connections", "/v1"])
async def test_no_spelling_leads_around_the_apis_door(operator: Person, path: str) -> None:
    """A route of callers is never run by the pages' door."""
    answer = await operator.get(path)
    assert answer.status in {401, 404}


@pytest.mark.parametrize("deed", ["test", "refresh", "reconnect"])
async def test_a_buttons_address_leads_back(operator: Person, deed: str) -> None:
    """Opened by hand or from the browser's history it does nothing."""
    answer = await operator.get(f"/connections/acme-1/{deed}")
    assert answer.headers["Location"] == "/connections/acme-1"
    assert operator.stage.behind.done == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("/connections/acme-1/explode", 404), ("/static/", 404), ("/static/..%2fpages.py", 404)],
)
async def test_what_is_not_there(operator: Person, path: str, status: int) -> None:
    """A page says so and leads back."""
    assert "There is no page here" in await operator.page(path, status)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_other_methods_are_not_allowed(operator: Person, method: str) -> None:
    """405 with the methods that are."""
    answer = await operator.session.request(method, operator.stage.url + "/connections")
    assert answer.status == 405
    assert "GET" in answer.headers["Allow"]


async def test_the_database_is_away(operator: Person) -> None:
    """503, in words."""
    operator.stage.behind.is_away = True
    assert "database cannot be used" in await operator.page("/connections", 503)


async def test_an_error_that_nobody_foresaw(operator: Person) -> None:
    """500 with a reference that is in the log, and nothing of its text."""
    operator.stage.behind.connections["acme-1"] = None  # type: ignore[assignment]  # breaks pages
    page = await operator.page("/connections", 500)
    assert "Look for the reference" in page


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"csrf=a&csrf=b", "application/x-www-form-urlencoded", 400),
        (b"csrf=" + b"x" * 70_000, "application/x-www-form-urlencoded", 413),
    ],
)
async def test_odd_forms_are_refused(
    operator: Person, body: bytes, content_type: str, status: int
) -> None:
    """With a page, and before anything is done."""
    answer = await operator.session.post(
        operator.stage.url + "/connect", data=body, headers={"Content-Type": content_type}
    )
    await read(answer, status)
    assert operator.stage.behind.done == []


async def test_names_are_escaped(operator: Person) -> None:
    """Whatever an account is called, it is text."""
    nasty = "<script>alert('x')</script>&\""
    operator.stage.behind.connections["acme-1"] = connection(
        "acme-1", Status.FAILING, label=nasty, account_id=nasty, metadata={nasty: nasty}
    )
    for path in ("/connections", "/connections/acme-1", "/connections/acme-1/disconnect"):
        assert "&lt;script&gt;" in await operator.page(path)


async def test_a_provider_that_is_gone_leaves_its_connections_to_see(operator: Person) -> None:
    """They can be looked at and disconnected, and nothing else."""
    operator.stage.settings = replace(operator.stage.settings, providers={"plain": ACME})
    page = await operator.page("/connections/acme-1")
    assert re.findall(r'id="do-(\w+)" disabled', page) == ["test", "refresh", "reconnect"]
    answer = await operator.post("/connections/acme-1/refresh", csrf=operator.csrf)
    assert "not in the configuration any more" in await read(answer, 409)


async def test_files_are_served_to_anybody_and_kept(person: Person) -> None:
    """The stylesheet, the script and the picture; their address changes with their bytes."""
    page = await person.page("/login")
    links = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(set(links)) == 3
    for link in links:
        answer = await person.get(link)
        assert answer.status == 200
        assert answer.content_type in {"text/css", "text/javascript", "image/svg+xml"}
        assert answer.headers["Cache-Control"] == "public, max-age=86400"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
