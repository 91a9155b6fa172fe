"""Fields, API, test, label, identity, revocation and webhook, as they come out when accepted."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import timedelta

import pytest

from daemon.domain.fields import Field
from daemon.domain.provider import (
    Endpoints,
    Provider,
    RequestFormat,
    RequestValues,
    RevocationAuthentication,
    RevocationRequest,
    TestRequest,
    provider_for,
)
from daemon.domain.templates import Template, parse_template
from tests.support.configuration import PROVIDER, Desk

_FORM = "application/x-www-form-urlencoded"


def _acme(desk: Desk, inside: str) -> Provider:
    settings = desk.load(f"providers: {{acme: {{{PROVIDER}, {inside}}}}}")
    assert settings.warnings == ()
    return settings.providers["acme"]


_WHOLE = """
events: {webhook: {url: null, secret: null}}
providers:
  acme:
    issuer: https://auth.acme.example
    authorization_endpoint: https://{region}.acme.example/oauth/authorize
    token_endpoint: https://{region}.acme.example/oauth/token
    refresh_endpoint: null
    revocation_endpoint: https://acme.example/oauth/revoke
    introspection_endpoint: null
    client_id: me
    client_secret: {env: CLIENT_SECRET}
    default_lifetime: null
    fields:
      region: {title: Region, enum: [us, eu], default: us}
    api_base_url: https://api.{region}.acme.example
    allowed_hosts: [api.us.acme.example, "*.acme-files.example"]
    allow_private_hosts: false
    test: {method: GET, path: /me}
    label: "{me.name} ({me.email})"
    label_mask: false
    account_id: me.id
    request:
      headers: {X-Api-Version: "2"}
      query: {}
      body: {}
"""


def test_every_key_together(desk: Desk) -> None:
    """An entry with all of it is accepted; that one region has no API host is said."""
    settings = desk.load(_WHOLE)
    (warning,) = settings.warnings
    assert warning.startswith("providers.acme.allowed_hosts: does not list the host")
    provider = settings.providers["acme"]
    made = provider_for(provider, {"region": "eu"})
    assert made.endpoints.token == "https://eu.acme.example/oauth/token"
    assert provider.allowed_hosts == ("api.us.acme.example", "*.acme-files.example")
    assert provider.test == TestRequest(path=Template("/me"))
    assert provider.reply_names == frozenset()


def test_nothing_by_default(desk: Desk) -> None:
    """What is not configured is not there; what is empty is the same as absent."""
    inside = (
        "fields: {}, api_base_url: null, allowed_hosts: [], test: null, label: null, request: {},"
        "account_id: null, revocation_request: {}, revocation_endpoint: null"
    )
    bare = desk.load(f"providers: {{acme: {{{PROVIDER}}}}}").providers["acme"]
    assert _acme(desk, inside) == bare
    assert desk.load("events: {webhook: {url: null, secret: null}}") == desk.load("")


def test_fields(desk: Desk) -> None:
    """A field has a title made of its name, and keeps its order and its choices."""
    fields = _acme(
        desk,
        "fields: {account_type: null, region: {title: Where, help: 'Ask Ann.', enum: [eu, us, eu],"
        "default: us, pattern: '[a-z]+', required: true}}, token_endpoint: "
        "'https://{region}.as.example/t'",
    ).fields
    assert list(fields) == ["account_type", "region"]
    assert fields["account_type"] == Field(name="account_type", title="Account type")
    assert fields["region"] == Field(
        name="region",
        title="Where",
        help="Ask Ann.",
        enum=("eu", "us"),
        default="us",
        pattern=re.compile("[a-z]+"),
        required=True,
        in_host=True,
    )


def test_twenty_fields(desk: Desk) -> None:
    """Twenty fields are not too many."""
    inside = ", ".join(f"a{i}: {{}}" for i in range(20))
    assert len(_acme(desk, f"fields: {{{inside}}}").fields) == 20


def test_endpoints_with_fields(desk: Desk) -> None:
    """Every endpoint may hold fields, and a connection's values make them whole."""
    keys = ["authorization", "token", "refresh", "revocation", "introspection"]
    urls = ", ".join(
        f"{key}_endpoint: 'https://{{shop}}.a.example/{{region}}/{key}'" for key in keys
    )
    provider = _acme(desk, f"fields: {{region: {{default: eu}}, shop: {{required: true}}}}, {urls}")
    made = provider_for(provider, {"region": "e u", "shop": "acme"})
    expected = {key: f"https://acme.a.example/e%20u/{key}" for key in keys}
    assert made.endpoints == Endpoints(**expected)
    assert [name for name, field in provider.fields.items() if field.in_host] == ["shop"]


def test_never(desk: Desk) -> None:
    """Tokens of a provider may live until they are revoked."""
    provider = _acme(desk, "default_lifetime: never")
    assert (provider.tokens_never_expire, provider.default_lifetime) == (True, None)
    assert not _acme(desk, "default_lifetime: 1h").tokens_never_expire


@pytest.mark.parametrize(
    ("inside", "hosts"),
    [
        ("api_base_url: https://API.example/v1/", ("api.example",)),
        ("api_base_url: https://api.example:8443", ("api.example:8443",)),
        ("api_base_url: https://api.example:443", ("api.example",)),
        ("api_base_url: 'https://api.example/{token.site}'", ("api.example",)),
        (
            "api_base_url: 'http://localhost:9000', allow_private_hosts: true",
            ("localhost:9000",),
        ),
        ("fields: {a: {default: b}}, api_base_url: 'https://{a}.api.example'", ()),
        ("allowed_hosts: [a.example]", ("a.example",)),
        (
            "api_base_url: 'https://api.example:8443', allowed_hosts: [b.example, API.example]",
            ("b.example", "api.example", "api.example:8443"),
        ),
        (
            "api_base_url: 'https://api.example', allowed_hosts: ['*.example.org', api.example]",
            ("*.example.org", "api.example"),
        ),
        (
            "api_base_url: 'https://eu.api.example', allowed_hosts: ['*.API.example:443']",
            ("*.api.example",),
        ),
        (
            "allowed_hosts: ['[2606:4700::0:1]:8443', '8.8.8.8', 'xn--bcher-kva.example:80']",
            ("[2606:4700::1]:8443", "8.8.8.8", "xn--bcher-kva.example:80"),
        ),
        (
            "allowed_hosts: [localhost, '10.0.0.1:8080', '[::1]'], allow_private_hosts: true",
            ("localhost", "10.0.0.1:8080", "[::1]"),
        ),
        (
            "api_base_url: '{token.instance_url}/v1', allowed_hosts: ['*.sales.example']",
            ("*.sales.example",),
        ),
    ],
)
def test_allowed_hosts(desk: Desk, inside: str, hosts: tuple[str, ...]) -> None:
    """Hosts have one form; without a list it is the host of ``api_base_url`` alone."""
    assert _acme(desk, inside).allowed_hosts == hosts


def test_api_base_url(desk: Desk) -> None:
    """The base URL loses its slash at the end, and keeps its names."""
    inside = "fields: {a: {default: b}}, api_base_url: 'https://{a}.api.example/v1//'"
    assert _acme(desk, inside).api_base_url == Template("https://{a}.api.example/v1", ("fields.a",))


def test_whole_test(desk: Desk) -> None:
    """Every key of a test arrives where it belongs."""
    provider = _acme(
        desk,
        """
        fields: {a: {default: b}}, api_base_url: https://api.example,
        test: {method: POST, path: "/who?x={a}", headers: {X-A: "{token.x}", X-Token: 7,
        X-B: "{access_token}"}, query: {token: "{token.access_token}", empty: ""}, expect: ok,
        body: {a: ["{a}", 1, 1.5, true, null, {b: "{not a name}"}], b: "two\\nlines"},
        interval: 15m}
        """,
    )
    test = provider.test
    assert test is not None
    assert test.expect is not None
    assert test.expect.search({"ok": 1}) == 1
    assert test == TestRequest(
        method="POST",
        path=parse_template("/who?x={a}"),
        headers={
            "X-A": parse_template("{token.x}"),
            "X-Token": Template("7"),
            "X-B": parse_template("{access_token}"),
        },
        query={"token": parse_template("{token.access_token}"), "empty": Template("")},
        body={
            "a": [parse_template("{a}"), 1, 1.5, True, None, {"b": Template("{not a name}")}],
            "b": Template("two\nlines"),
        },
        expect=test.expect,
        interval=timedelta(minutes=15),
        only_unexpiring=False,
    )
    assert provider.reply_names == {"token.x"}


@pytest.mark.parametrize(
    ("written", "interval", "only_unexpiring"),
    [
        ("", timedelta(hours=24), True),
        (", interval: null", timedelta(hours=24), True),
        (", interval: 24h", timedelta(hours=24), False),
        (", interval: 60", timedelta(minutes=1), False),
        (", interval: off", None, False),
        (", interval: 'off'", None, False),
        (", interval: false", None, False),
    ],
)
def test_interval(
    desk: Desk,
    written: str,
    interval: timedelta | None,
    only_unexpiring: bool,  # noqa: FBT001 - a table's column
) -> None:
    """Without an interval only tokens without an end are tested; with one, all are."""
    test = _acme(desk, f"api_base_url: https://a.example, test: {{path: /me{written}}}").test
    assert test is not None
    assert (test.interval, test.only_unexpiring) == (interval, only_unexpiring)


@pytest.mark.parametrize(
    ("api", "test"),
    [
        ("api_base_url: https://a.example", "url: https://a.example/me"),
        ("allowed_hosts: [a.example]", "url: https://a.example/me"),
        (
            "api_base_url: https://a.example, allowed_hosts: ['*.x.example', a.example]",
            "url: https://b.x.example/me",
        ),
        (
            "fields: {r: {default: e}}, api_base_url: 'https://{r}.a.example'",
            "url: 'https://{r}.a.example/me'",
        ),
        ("api_base_url: '{token.url}/v1', allowed_hosts: ['*.a.example']", "url: '{token.url}/me'"),
        (
            "api_base_url: 'https://{me.dc}.a.example', allowed_hosts: ['*.a.example']",
            "url: https://login.a.example/me",
        ),
        ("allow_private_hosts: true, api_base_url: 'http://127.0.0.1:9000'", "path: /"),
        (
            "api_base_url: https://a.example",
            f"path: /me, method: PUT, body: {{a: 1}}, headers: {{Content-Type: {_FORM}}}",
        ),
    ],
)
def test_places_of_a_test(desk: Desk, api: str, test: str) -> None:
    """A test goes below the base URL, or to a URL at an allowed host."""
    assert _acme(desk, f"{api}, test: {{{test}}}").test


def test_request(desk: Desk) -> None:
    """What is put on every request, the token in another place included."""
    provider = _acme(
        desk,
        """
        api_base_url: https://a.example, test: {path: /me},
        request: {headers: {Authorization: "token {access_token}", X-Tenant: "{me[0].id}"},
        query: {key: "{access_token}", realm: "{callback.realmId}"}, body: {a: {b: ["{me.x}"]}}}
        """,
    )
    assert provider.request == RequestValues(
        headers={
            "Authorization": Template("token {access_token}", ("fields.access_token",)),
            "X-Tenant": Template("{me[0].id}", ("me[0].id",)),
        },
        query={
            "key": parse_template("{access_token}"),
            "realm": Template("{callback.realmId}", ("callback.realmId",)),
        },
        body={"a": {"b": [parse_template("{me.x}")]}},
    )
    assert provider.reply_names == {"me[0].id", "callback.realmId", "me.x"}


def test_account(desk: Desk) -> None:
    """Label and identity are compiled; what only a label needs is not kept."""
    provider = _acme(
        desk,
        """
        fields: {region: {}}, api_base_url: "{token.url}/v1", allowed_hosts: ["*.a.example"],
        test: {url: "{token.url}/me"}, label: "{me.name} ({region}) {token.user.name}",
        label_mask: true, account_id: "join('-', [token.org, to_string(me.id)])"
        """,
    )
    assert provider.label is not None
    assert provider.label.names == ("me.name", "fields.region", "token.user.name")
    assert provider.label_mask
    assert provider.account_id is not None
    assert provider.account_id.search({"token": {"org": "o"}, "me": {"id": 7}}) == "o-7"
    assert provider.reply_names == {"token.url"}


@pytest.mark.parametrize(
    "selector",
    [
        "me.id",
        "me.accounts[0].id",
        "me.accounts[?is_default].id | [0]",
        "sort_by(me.accounts, &created)[0].id",
        "token.team.id || fields.team",
        "callback.realmId",
        "me[*].tenantId | [0]",
        "me.accounts[0:1].id | [0]",
    ],
)
def test_account_ids(desk: Desk, selector: str) -> None:
    """An account id may be found anywhere below the four names."""
    inside = "fields: {team: {}}, api_base_url: https://a.example, test: {path: /me}"
    assert _acme(desk, f'{inside}, account_id: "{selector}"').account_id


def test_revocation_request(desk: Desk) -> None:
    """Every key of a revocation request arrives where it belongs."""
    inside = (
        "revocation_request: {method: DELETE, format: json, authentication: bearer, token_param: "
        "null, sends_hint: false, tokens: [access_token, access_token], params: {all: 1, token: x, "
        "client_id: me}, on_reconnect: false}"
    )
    assert _acme(desk, inside).revocation_request == RevocationRequest(
        method="DELETE",
        format=RequestFormat.JSON,
        authentication=RevocationAuthentication.BEARER,
        token_param=None,
        sends_hint=False,
        tokens=("access_token",),
        params={"all": "1", "token": "x", "client_id": "me"},
        on_reconnect=False,
    )


_BYTES = bytes(range(24))


@pytest.mark.parametrize(
    ("written", "secret"),
    [
        ("whsec_" + base64.b64encode(_BYTES).decode(), _BYTES),
        ("whsec_" + base64.b64encode(_BYTES * 2 + b"x").decode().rstrip("="), _BYTES * 2 + b"x"),
        (base64.b64encode(_BYTES).decode(), _BYTES),
        ("any text of so many bytes", b"any text of so many bytes"),
        (
            "zw\u00f6lf zw\u00f6lf zw\u00f6lf zw\u00f6lf",
            "zw\u00f6lf zw\u00f6lf zw\u00f6lf zw\u00f6lf".encode(),
        ),
    ],
)
def test_webhook(desk: Desk, written: str, secret: bytes) -> None:
    """A webhook's secret is base64, as receivers' libraries read it, else its text's bytes."""
    settings = desk.load(
        "events: {retention: 24h, webhook: {url: {env: URL}, secret: {env: SECRET}}}",
        environ={"URL": "https://app.example/hook?a=b", "SECRET": written},
    )
    assert settings.warnings == ()
    assert settings.events.retention == timedelta(hours=24)
    webhook = settings.events.webhook
    assert webhook is not None
    assert (webhook.url, webhook.secret) == ("https://app.example/hook?a=b", secret)
    assert not webhook.allow_private_hosts
    assert "app.example" not in repr(settings)


@pytest.mark.parametrize("url", ["http://localhost:80/x", "https://10.1.2.3/x", "http://[::1]:1/"])
def test_private_webhook(desk: Desk, url: str) -> None:
    """A URL that names a private host needs no second word."""
    environ: Mapping[str, str] = {"SECRET": "0123456789abcdefghijklmn"}
    inside = f"url: '{url}', secret: {{env: SECRET}}"
    webhook = desk.load(f"events: {{webhook: {{{inside}}}}}", environ=environ).events.webhook
    assert webhook is not None
    assert webhook.allow_private_hosts


def test_secret_without_webhook(desk: Desk) -> None:
    """A secret for nothing gives a warning."""
    environ = {"SECRET": "0123456789abcdefghijklmn"}
    (warning,) = desk.load("events: {webhook: {secret: {env: SECRET}}}", environ=environ).warnings
    assert warning.startswith("events.webhook.secret: has no effect without url")
