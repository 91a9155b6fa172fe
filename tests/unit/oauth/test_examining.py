"""The test request: what is sent, what its reply says, and introspection where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import jmespath
import pytest
from pydantic import SecretStr

from daemon.domain.allowed_hosts import HostNotAllowedError
from daemon.domain.provider import (
    ClientAuthentication,
    Endpoints,
    Provider,
    RequestValues,
    TestRequest,
)
from daemon.domain.reply import Fault, NoReply, RawReply
from daemon.domain.templates import TemplateError, parse_template, parse_url_template
from daemon.oauth.api_session import ApiRequest
from daemon.oauth.examination import judge
from daemon.oauth.examiner import Examiner, is_testable
from daemon.oauth.introspection import judge_introspection
from daemon.oauth.testing import next_test_at, request_for
from tests.support.authorization import SteppedClock

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TOKEN = "access-token-canary"
VALUES = {"fields.region": "eu", "token.instance_url": "https://eu.acme.example/base"}
ME = TestRequest(path=parse_url_template("/me"))
ACME = Provider(
    name="acme",
    client_id="client",
    api_base_url=parse_url_template("https://api.{region}.acme.example/v1"),
    allowed_hosts=("*.acme.example",),
    test=ME,
)
BEARER = f"Bearer {TOKEN}"


def templates(**texts: str) -> dict[str, Any]:
    """Return templates by name; ``__`` stands for a hyphen."""
    return {name.replace("__", "-"): parse_template(text) for name, text in texts.items()}


def sent(provider: Provider = ACME, **values: str) -> ApiRequest:
    """Return the test request of a connection with more values, ``__`` for a dot."""
    more = {name.replace("__", "."): value for name, value in values.items()}
    assert provider.test is not None
    return request_for(provider, provider.test, access_token=TOKEN, values={**VALUES, **more})


def with_test(**changes: Any) -> Provider:
    """Return the provider with another test request."""
    return replace(ACME, test=replace(ME, **changes))


def test_a_test_request_is_a_get_with_the_token_in_its_header() -> None:
    """S11: GET /me, Authorization: Bearer, below api_base_url."""
    request = sent()

    assert (request.method, request.url) == ("GET", "https://api.eu.acme.example/v1/me")
    assert request.headers["Authorization"] == BEARER
    assert request.headers["Accept"] == "application/json"
    assert request.body == b""
    assert not request.allow_private_hosts
    assert TOKEN not in repr(request)


@pytest.mark.parametrize(
    ("provider", "url"),
    [
        (with_test(path=parse_url_template("/u/{region}?a=b")), "/v1/u/eu?a=b"),
        (with_test(query=templates(q="{region} x", r="1")), "/v1/me?q=eu%20x&r=1"),
        (with_test(path=parse_url_template("/me?q=0&k"), query=templates(q="1")), "/v1/me?k&q=1"),
        (
            replace(
                with_test(query=templates(q="test")),
                request=RequestValues(query=templates(q="request", v="2")),
            ),
            "/v1/me?q=test&v=2",
        ),
    ],
)
def test_path_and_query_are_rendered(provider: Provider, url: str) -> None:
    """S15: what every request of the provider has, the test has too; its own wins."""
    assert sent(provider).url == "https://api.eu.acme.example" + url


def test_a_url_of_its_own_may_begin_with_a_value_of_a_reply() -> None:
    """As Salesforce's instance URL does; the list still decides."""
    provider = with_test(path=None, url=parse_url_template("{token.instance_url}/who"))

    assert sent(provider).url == "https://eu.acme.example/base/who"
    with pytest.raises(HostNotAllowedError):
        sent(provider, token__instance_url="https://evil.example")


@pytest.mark.parametrize(
    ("request_values", "test_headers", "expected"),
    [
        ({"X__Version": "2"}, {}, {"X-Version": "2", "Authorization": BEARER}),
        ({"X__Version": "2"}, {"x__version": "3"}, {"x-version": "3", "Authorization": BEARER}),
        ({"Authorization": "token {access_token}"}, {}, {"Authorization": f"token {TOKEN}"}),
        ({}, {"X__Key": "{token.access_token}"}, {"X-Key": TOKEN}),
        ({"Accept": "text/x"}, {}, {"Accept": "text/x", "Authorization": BEARER}),
        ({"User__Agent": "us"}, {}, {"User-Agent": "us", "Authorization": BEARER}),
        ({"X__Region": "{region}"}, {}, {"X-Region": "eu", "Authorization": BEARER}),
        # Its own reply will tell; until then the test goes without.
        ({"X__Me": "{me.id}"}, {}, {"Authorization": BEARER}),
    ],
)
def test_headers_of_every_request_and_of_the_test(
    request_values: dict[str, str], test_headers: dict[str, str], expected: dict[str, str]
) -> None:
    """The test's win over the provider's; the token goes where the configuration puts it."""
    provider = replace(
        with_test(headers=templates(**test_headers)),
        request=RequestValues(headers=templates(**request_values)),
    )

    headers = {
        "Accept": "application/json",
        "User-Agent": sent().headers["User-Agent"],
        "Accept-Encoding": "identity",
    }
    assert sent(provider).headers == headers | expected


def test_a_token_in_the_query_only_because_the_configuration_says_so() -> None:
    """Some APIs demand it; then there is no header."""
    provider = replace(ACME, request=RequestValues(query=templates(key="{access_token}")))

    assert sent(provider).url == f"https://api.eu.acme.example/v1/me?key={TOKEN}"
    assert "Authorization" not in sent(provider).headers


@pytest.mark.parametrize(
    ("body", "headers", "content", "content_type"),
    [
        (None, {}, b"", None),
        (
            {"q": parse_template("{region}"), "n": 1},
            {},
            b'{"always": true, "q": "eu", "n": 1}',
            "application/json",
        ),
        ([parse_template("{region}"), None], {}, b'["eu", null]', "application/json"),
        (parse_template('{"r": 1}'), {}, b'{"r": 1}', "application/json"),
        (parse_template("ping {region}"), {}, b"ping eu", "text/plain; charset=utf-8"),
        (
            {"a": parse_template("{region}&"), "n": 1, "x": None},
            {"content__type": "application/x-www-form-urlencoded"},
            b"always=true&a=eu%26&n=1&x=",
            "application/x-www-form-urlencoded",
        ),
        ({}, {"Content__Type": "application/x+json"}, b'{"always": true}', "application/x+json"),
    ],
)
def test_a_body_is_json_unless_the_headers_say_a_form(
    body: Any, headers: dict[str, str], content: bytes, content_type: str | None
) -> None:
    """POST with dummy values, as the requirement says; the provider's members join an object's."""
    provider = replace(
        with_test(method="POST", body=body, headers=templates(**headers)),
        request=RequestValues(body={"always": True}),
    )

    request = sent(provider)

    types = [value for name, value in request.headers.items() if name.lower() == "content-type"]
    assert (request.method, request.body) == ("POST", content)
    assert types == ([] if content_type is None else [content_type])


@pytest.mark.parametrize(
    ("provider", "values", "error"),
    [
        (ACME, {"fields.region": ""}, HostNotAllowedError),
        (ACME, {"fields.region": "a.b"}, HostNotAllowedError),
        (replace(ACME, allowed_hosts=("api.us.acme.example",)), {}, HostNotAllowedError),
        (replace(ACME, api_base_url=None), {}, HostNotAllowedError),
        (with_test(headers=templates(x="{token.missing}")), {}, TemplateError),
        (
            with_test(headers=templates(x="{fields.note}")),
            {"fields.note": "a\r\nb: c"},
            TemplateError,
        ),
    ],
)
def test_what_cannot_be_sent_is_not_built(
    provider: Provider, values: dict[str, str], error: type[Exception]
) -> None:
    """Before any byte: a missing value, a host that is not listed, a broken header."""
    with pytest.raises(error):
        sent(provider, **{name.replace(".", "__"): value for name, value in values.items()})


def reply(body: object = b"{}", status: int = 200) -> RawReply:
    """Return a reply; what is not bytes becomes JSON."""
    octets = body if isinstance(body, bytes) else json.dumps(body).encode()
    return RawReply(status=status, headers={}, body=octets)


@pytest.mark.parametrize(
    ("answer", "expect", "code"),
    [
        (reply({"id": 1}), None, None),
        (reply({"id": 1}, 201), None, None),
        (reply(b"", 204), None, None),
        (reply(b"<html>"), None, None),
        (reply({"ok": True}), "ok", None),
        (reply({"ok": True}), "me.ok", None),
        (reply({"ok": False}), "ok", "expect_failed"),
        (reply({"ok": False}), "me.ok", "expect_failed"),
        (reply({"error": "x"}), "!error", "expect_failed"),
        (reply({"id": 1}), "!error", None),
        (reply({"n": 0}), "n", "expect_failed"),
        (reply({"list": []}), "list", "expect_failed"),
        (reply([{"id": 1}]), "me[0].id", None),
        (reply({"region": "eu"}), "region == 'eu'", None),
        (reply({"n": "x"}), "max(n)", "expect_failed"),
        (reply(b"<html>"), "ok", "unexpected_reply"),
        (reply(b""), "ok", "unexpected_reply"),
        (reply(b"\xff"), "ok", "unexpected_reply"),
        (reply(b"[" * 100_000), "ok", "unexpected_reply"),
        (reply(b"{}", 401), None, "token_refused"),
        (reply(b"{}", 403), None, "http_status"),
        (reply(b"{}", 404), None, "http_status"),
        (reply(b"{}", 429), None, "http_status"),
        (reply(b"{}", 302), None, "http_status"),
        (reply(b"{}", 500), None, "http_status"),
        (NoReply(sent=True, fault=Fault.TIMEOUT), None, "timeout"),
        (NoReply(sent=False, fault=Fault.ADDRESS), None, "address_refused"),
        (NoReply(sent=False, fault=Fault.NAME), None, "network"),
        (NoReply(sent=False, fault=Fault.CONNECT), None, "network"),
        (NoReply(sent=False, fault=Fault.CERTIFICATE), None, "network"),
        (NoReply(sent=True, fault=Fault.DISCONNECTED), None, "network"),
        (NoReply(sent=True, fault=Fault.OVERSIZE), None, "unexpected_reply"),
        (NoReply(sent=True, fault=Fault.MALFORMED), None, "unexpected_reply"),
    ],
)
def test_a_reply_is_judged(
    answer: RawReply | NoReply, expect: str | None, code: str | None
) -> None:
    """Good is a 2xx for which ``expect`` holds; only a 401 refuses the token."""
    test = replace(ME, expect=jmespath.compile(expect) if expect else None)

    examined = judge(answer, test, access_token=TOKEN, now=NOW)

    result = examined.result
    assert result.ok == (code is None)
    assert (result.error and result.error.code) == code
    assert result.status == (answer.status if isinstance(answer, RawReply) else None)
    assert examined.is_refused == (code == "token_refused")
    if result.error is not None:
        assert result.error.description.endswith(".")
        assert result.checked_at == result.error.at == NOW


@pytest.mark.parametrize("fault", list(Fault))
def test_every_fault_has_words(fault: Fault) -> None:
    """No fault is without a code and a sentence."""
    error = judge(NoReply(sent=False, fault=fault), ME, access_token=TOKEN, now=NOW).result.error

    assert error is not None
    assert error.code in {"timeout", "network", "address_refused", "unexpected_reply"}


def test_a_reply_that_echoes_the_token_does_not_keep_it() -> None:
    """A debugging API that answers with our headers tells nothing to labels and values."""
    answer = reply({"headers": {"authorization": BEARER, "x": 1}, "id": 1})

    examined = judge(answer, ME, access_token=TOKEN, now=NOW)

    assert examined.me == {"headers": {"authorization": None, "x": 1}, "id": 1}
    assert TOKEN not in repr(examined)


def test_the_body_of_a_refusal_is_not_repeated() -> None:
    """What an API writes into an error may hold anything."""
    examined = judge(reply({"error": "evil prose"}, 500), ME, access_token=TOKEN, now=NOW)

    assert "evil" not in repr(examined)
    assert not examined.has_me


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply({"active": True, "sub": "anna"}), None),
        (reply({"active": False}), "token_refused"),
        (reply({"active": "yes"}), "unexpected_reply"),
        (reply({"sub": "anna"}), "unexpected_reply"),
        (reply(b"active"), "unexpected_reply"),
        (reply([]), "unexpected_reply"),
        (reply({"error": "invalid_client"}, 401), "http_status"),
        (reply({}, 403), "http_status"),
        (reply({"active": True}, 500), "http_status"),
        (NoReply(sent=True, fault=Fault.TIMEOUT), "network"),
    ],
)
def test_introspection_is_judged(answer: RawReply | NoReply, code: str | None) -> None:
    """RFC 7662 2.2: only ``active`` speaks of the token; a 401 speaks of our client."""
    examined = judge_introspection(answer, access_token=TOKEN, now=NOW)

    assert (examined.result.error and examined.result.error.code) == code
    assert examined.is_refused == (code == "token_refused")
    assert examined.me == ({"active": True, "sub": "anna"} if code is None else None)


DAY = timedelta(hours=24)


@pytest.mark.parametrize(
    ("test", "expires_at", "chance", "after"),
    [
        (None, None, 0.5, None),
        (replace(ME, interval=None), None, 0.5, None),
        (ME, NOW, 0.5, None),
        (ME, None, 0.5, DAY),
        (ME, None, 0.0, DAY * 0.9),
        (ME, None, 1.0, DAY * 1.1),
        (replace(ME, only_unexpiring=False, interval=timedelta(hours=1)), NOW, 0.5, DAY / 24),
    ],
)
def test_when_a_connection_is_tested_by_itself(
    test: TestRequest | None, expires_at: datetime | None, chance: float, after: timedelta | None
) -> None:
    """S11: tokens without an expiry once a day; others only where the configuration says so."""
    at = next_test_at(test, expires_at=expires_at, now=NOW, chance=chance)

    assert at == (None if after is None else NOW + after)


class ScriptedApi:
    """Both doors: ``send`` to APIs and ``post`` to introspection endpoints."""

    def __init__(self, *answers: RawReply | NoReply) -> None:
        self.answers = list(answers)
        self.sent: list[ApiRequest] = []
        self.posted: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []
        self.timeouts: list[float] = []

    async def send(self, request: ApiRequest, *, hard_timeout: float) -> RawReply | NoReply:
        """Answer."""
        self.sent.append(request)
        self.timeouts.append(hard_timeout)
        return self.answers.pop(0)

    async def post(
        self, url: str, headers: Any, body: bytes, *, hard_timeout: float, may_send: Any = None
    ) -> RawReply | NoReply:
        """Answer."""
        del may_send
        self.posted.append((url, dict(headers), parse_qs(body.decode())))
        self.timeouts.append(hard_timeout)
        return self.answers.pop(0)


def examiner(api: ScriptedApi) -> Examiner:
    """Return an examiner with that door."""
    return Examiner(api=api, session=api, clock=SteppedClock())


async def test_the_examiner_sends_the_test_request() -> None:
    """One request, within ten seconds, with the connection's fields and kept values."""
    api = ScriptedApi(reply({"id": 1}))

    examined = await examiner(api).examine(
        ACME, TOKEN, fields={"region": "us"}, reply_values={"token.x": "1"}
    )

    assert examined is not None
    assert examined.result.ok
    assert [request.url for request in api.sent] == ["https://api.us.acme.example/v1/me"]
    assert api.timeouts == [10.0]


@pytest.mark.parametrize(
    ("fields", "provider", "code"),
    [
        ({"region": "a.b"}, ACME, "host_not_allowed"),
        ({"region": "us"}, with_test(headers=templates(x="{token.nope}")), "value_missing"),
        ({"region": "us"}, replace(ACME, allowed_hosts=("other.example",)), "host_not_allowed"),
    ],
)
async def test_what_cannot_be_built_is_a_result(
    fields: dict[str, str], provider: Provider, code: str
) -> None:
    """S13: nothing is sent, and the report says why."""
    api = ScriptedApi()

    examined = await examiner(api).examine(provider, TOKEN, fields=fields, reply_values={})

    assert examined is not None
    assert examined.result.error is not None
    assert examined.result.error.code == code
    assert api.sent == []


INTROSPECTING = Provider(
    name="acme",
    client_id="client",
    client_secrets=(SecretStr("old"), SecretStr("new")),
    token_endpoint_auth_method=ClientAuthentication.CLIENT_SECRET_POST,
    endpoints=Endpoints(introspection="https://auth.acme.example/introspect"),
)


async def test_without_a_test_request_the_token_is_introspected() -> None:
    """RFC 7662 2.1, as our client; the next secret is tried where one is not accepted."""
    api = ScriptedApi(reply({}, 401), reply({"active": True, "sub": "anna"}))

    examined = await examiner(api).examine(INTROSPECTING, TOKEN, fields={}, reply_values={})

    assert examined is not None
    assert examined.me == {"active": True, "sub": "anna"}
    assert [url for url, _, _ in api.posted] == ["https://auth.acme.example/introspect"] * 2
    assert [form["client_secret"] for _, _, form in api.posted] == [["old"], ["new"]]
    assert api.posted[0][2]["token"] == [TOKEN]
    assert api.posted[0][2]["token_type_hint"] == ["access_token"]
    assert sum(api.timeouts) <= 10.0


async def test_a_client_that_no_secret_proves_is_not_the_tokens_fault() -> None:
    """Every secret was tried; the token may be good."""
    api = ScriptedApi(reply({}, 401), reply({}, 401))

    examined = await examiner(api).examine(INTROSPECTING, TOKEN, fields={}, reply_values={})

    assert examined is not None
    assert not examined.is_refused
    assert examined.result.status == 401


async def test_without_either_nothing_is_asked() -> None:
    """A provider that offers neither cannot be tested."""
    bare = Provider(name="acme", client_id="client")

    assert await examiner(ScriptedApi()).examine(bare, TOKEN, fields={}, reply_values={}) is None
    assert not is_testable(bare)
    assert is_testable(ACME)
    assert is_testable(INTROSPECTING)
