"""Fields, API, test, label, identity and revocation that must be refused, as data."""

from __future__ import annotations

import pytest

from tests.support.configuration import PROVIDER, Desk

_REGION = "fields: {region: {enum: [us, eu], default: us}}"
_API = "api_base_url: https://api.example"
_TEST = f"{_API}, test: {{path: /me}}"
_POST = f"{_API}, test: {{path: /me, method: POST"
_FORM = "application/x-www-form-urlencoded"
_TENANT = "api_base_url: 'https://{region}.api.example'"

# The inside of providers.acme beside PROVIDER, the path below it, a fragment.
FIELDS = [
    ("fields: [region]", "fields", "must be a mapping"),
    ("fields: {Region: {}}", "fields.Region", "lower-case letters"),
    ("fields: {1a: {}}", "fields.1a", "begin with a letter"),
    (f"fields: {{{'a' * 64}: {{}}}}", f"fields.{'a' * 64}", "1 to 63"),
    ("fields: {token: {}}", "fields.token", "choose another"),
    ("fields: {me: {}}", "fields.me", "choose another"),
    ("fields: {access_token: {}}", "fields.access_token", "choose another"),
    ("fields: {a: text}", "fields.a", "must be a mapping"),
    ("fields: {a: {titel: A}}", "fields.a.titel", "did you mean title?"),
    ("fields: {a: {name: A}}", "fields.a.name", "the key it stands under"),
    ("fields: {a: {title: ''}}", "fields.a.title", "must not be empty"),
    ("fields: {a: {title: ' '}}", "fields.a.title", "1 to 100"),
    (f"fields: {{a: {{help: {'a' * 501}}}}}", "fields.a.help", "1 to 500"),
    ("fields: {a: {enum: us}}", "fields.a.enum", "must be a list"),
    ("fields: {a: {enum: []}}", "fields.a.enum", "empty list"),
    ("fields: {a: {enum: [1]}}", "fields.a.enum[0]", "in quotes"),
    ("fields: {a: {enum: [us, ' eu']}}", "fields.a.enum[1]", "a space"),
    ("fields: {a: {enum: [us], default: eu}}", "fields.a.default", "one of the choices in"),
    ("fields: {a: {default: 7}}", "fields.a.default", "in quotes"),
    ("fields: {a: {default: '..'}}", "fields.a.default", "must not be . or .."),
    (f"fields: {{a: {{default: {'a' * 256}}}}}", "fields.a.default", "at most 255"),
    ("fields: {a: {pattern: '['}}", "fields.a.pattern", "not a regular expression"),
    ("fields: {a: {pattern: 'a{99999999999}'}}", "fields.a.pattern", "not a regular expression"),
    (f"fields: {{a: {{pattern: {'a' * 301}}}}}", "fields.a.pattern", "at most 300"),
    ("fields: {a: {pattern: '[a-z]', default: ab}}", "fields.a.default", "does not match"),
    ("fields: {a: {pattern: '[a-z]', enum: [a, B]}}", "fields.a.enum[1]", "does not match"),
    ("fields: {a: {required: 1}}", "fields.a.required", "true or false"),
    (
        f"fields: {{{', '.join(f'a{i}: {{}}' for i in range(21))}}}",
        "fields",
        "more than 20 fields",
    ),
    (
        "fields: {region: {default: a.b}}, api_base_url: 'https://{region}.acme.example'",
        "fields.region.default",
        "stands in the host of api_base_url",
    ),
    (
        "fields: {region: {enum: [e, e_u], default: e}}, issuer: 'https://{region}.as.example'",
        "fields.region.enum[1]",
        "stands in the host of issuer",
    ),
]

URLS = [
    ("token_endpoint: 'https://{region}.as.example/t'", "token_endpoint", "add it under fields"),
    (
        f"{_REGION}, token_endpoint: 'https://{{regio}}.as.example/t'",
        "token_endpoint",
        "uses {regio}, which is not a field of this provider; there are: region",
    ),
    *(
        (
            f"{key}: 'https://{{token.x}}.as.example/t'",
            key,
            "must not use {token.x}: it is needed before there is a token",
        )
        for key in (
            "authorization_endpoint",
            "token_endpoint",
            "refresh_endpoint",
            "revocation_endpoint",
            "introspection_endpoint",
        )
    ),
    ("issuer: '{token.x}'", "issuer", "must not use {token.x}"),
    ("token_endpoint: 'https://{region}.example/t'", "token_endpoint", "last two labels"),
    ("token_endpoint: 'https://as.example:{port}/t'", "token_endpoint", "in its port"),
    ("token_endpoint: 'https://as.example/{'", "token_endpoint", "%7B and %7D"),
    (f"{_REGION}, token_endpoint: 'http://{{region}}.as.example/'", "token_endpoint", "be https"),
    (
        f"{_REGION}, token_endpoint: 'https://as.example/{{region}}/../t'",
        "token_endpoint",
        "must not contain . or ..",
    ),
    (
        f"{_REGION}, authorization_endpoint: 'https://as.example/?state={{region}}'",
        "authorization_endpoint",
        "parameter of the protocol",
    ),
    ("api_base_url: api.example", "api_base_url", "begins with https://"),
    ("api_base_url: http://api.example", "api_base_url", "must be https"),
    ("api_base_url: 'https://api.example/?a=b'", "api_base_url", "query"),
    ("api_base_url: 'https://api.example/#a'", "api_base_url", "fragment"),
    ("api_base_url: https://a@api.example", "api_base_url", "user name"),
    ("api_base_url: https://api.example/../x", "api_base_url", "must not contain . or .."),
    ("api_base_url: https://api.example./x", "api_base_url", "every program reads alike"),
    ("api_base_url: https://my_api.example/x", "api_base_url", "every program reads alike"),
    ("api_base_url: 'https://[::0001]/x'", "api_base_url", "every program reads alike"),
    ("api_base_url: '{token.url}/v1'", "allowed_hosts", "is required where api_base_url begins"),
    ("api_base_url: '{region}/v1'", "api_base_url", "must begin with https://"),
    ("api_base_url: 'https://{me.dc}.api.example'", "api_base_url", "configure test"),
    ("api_base_url: 'https://api.example/{access_token}'", "api_base_url", "must not hold the acc"),
    (
        "api_base_url: 'https://api.example/{token.access_token}'",
        "api_base_url",
        "must not hold the access token",
    ),
    (
        "api_base_url: 'https://api.example/{token.data.refresh_token}'",
        "api_base_url",
        "is a secret and would be stored in clear",
    ),
    ("api_base_url: 'https://api.example/{callback.code}'", "api_base_url", "is a secret"),
]

HOSTS = [
    ("allowed_hosts: a.example", "allowed_hosts", "must be a list"),
    ("allowed_hosts: [3]", "allowed_hosts[0]", "in quotes"),
    ("allowed_hosts: ['*']", "allowed_hosts[0]", "would allow every host"),
    ("allowed_hosts: ['*.*']", "allowed_hosts[0]", "would allow every host"),
    ("allowed_hosts: ['*.']", "allowed_hosts[0]", "would allow every host"),
    ("allowed_hosts: ['*.example']", "allowed_hosts[0]", "at least two parts"),
    ("allowed_hosts: ['*.10.0.0.1']", "allowed_hosts[0]", "at least two parts"),
    ("allowed_hosts: ['a.*.example']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['*a.b.example']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['https://a.example']", "allowed_hosts[0]", "without https://"),
    ("allowed_hosts: ['a.example/x']", "allowed_hosts[0]", "without a path"),
    ("allowed_hosts: ['a@b.example']", "allowed_hosts[0]", "user name"),
    ("allowed_hosts: ['a.example.']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['a..example']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['b\u00fccher.example']", "allowed_hosts[0]", "xn-- form"),
    ("allowed_hosts: ['a.example:0']", "allowed_hosts[0]", "port from 1 to 65535"),
    ("allowed_hosts: ['a.example:99999']", "allowed_hosts[0]", "port from 1 to 65535"),
    ("allowed_hosts: ['a.example:']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['a.example:x']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['[zz]']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['[::1']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['::1']", "allowed_hosts[0]", "in brackets"),
    ("allowed_hosts: ['127.1']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['a b.example']", "allowed_hosts[0]", "must be a host such as"),
    ("allowed_hosts: ['{region}.a.example']", "allowed_hosts[0]", "must be a host such as"),
    (f"{_API}, allowed_hosts: [b.example]", "allowed_hosts", "must list the host of api_base_url"),
    (f"{_API}:8443, allowed_hosts: ['api.example:80']", "allowed_hosts", "must list the host of"),
    ("allow_private_hosts: 'yes'", "allow_private_hosts", "true or false"),
]

TESTS = [
    ("test: /me", "test", "must be a mapping"),
    (f"{_API}, test: {{}}", "test", "exactly one of path (below api_base_url"),
    (f"{_API}, test: {{path: /me, url: https://api.example/me}}", "test", "exactly one of path"),
    ("test: {path: /me}", "test.path", "set providers.acme.api_base_url, or write url"),
    (f"{_API}, test: {{path: me}}", "test.path", "begins with one slash"),
    (f"{_API}, test: {{path: //evil.example/me}}", "test.path", "begins with one slash"),
    (f"{_API}, test: {{path: /a/../me}}", "test.path", "must not contain . or .."),
    (f"{_API}, test: {{path: '/me#x'}}", "test.path", "fragment"),
    (f"{_API}, test: {{path: '/m e'}}", "test.path", "without spaces"),
    (f"{_API}, test: {{path: '/{{region}}'}}", "test.path", "not a field of this provider"),
    (f"{_API}, test: {{path: '/{{me.id}}'}}", "test.path", "the reply of this request itself"),
    (f"{_API}, test: {{path: '/{{access_token}}'}}", "test.path", "must not hold the access token"),
    (f"{_API}, test: {{path: '/?{{token.x}}=1'}}", "test.path", "name of a query parameter"),
    ("test: {url: https://api.example/me}", "test.url", "list it in allowed_hosts"),
    (f"{_API}, test: {{url: https://b.example/me}}", "test.url", "is not in allowed_hosts"),
    (
        f"{_API}, allowed_hosts: [api.example], test: {{url: https://b.example/me}}",
        "test.url",
        "is not in allowed_hosts; add it there",
    ),
    (f"{_API}, test: {{url: http://api.example/me}}", "test.url", "must be https"),
    (
        "api_base_url: 'https://{me.dc}.api.example', test: {path: /me}",
        "test.path",
        "write url instead of path",
    ),
    (f"{_API}, test: {{path: /me, method: get}}", "test.method", "one of GET, HEAD, POST"),
    (f"{_API}, test: {{path: /me, method: DELETE}}", "test.method", "one of GET, HEAD, POST"),
    (f"{_API}, test: {{path: /me, body: {{a: 1}}}}", "test.body", "set method: POST"),
    (
        f"{_POST}, body: {{a: [1]}}, headers: {{content-type: {_FORM}; charset=utf-8}}}}",
        "test.body",
        "since the headers say a form",
    ),
    (
        f"{_POST}, body: [1], headers: {{Content-Type: {_FORM}}}}}",
        "test.body",
        "headers say a form",
    ),
    (f"{_POST}, body: '{{me.id}}'}}", "test.body", "this request"),
    (
        f"{_POST}, body: {{a: ['{{x}}']}}}}",
        "test.body.a[0]",
        "not a field",
    ),
    (
        f'{_POST}, body: ["a\\0b"]}}',
        "test.body[0]",
        "control characters",
    ),
    (
        f"{_POST}, body: [{', '.join(['1'] * 500)}]}}",
        "test.body[499]",
        "at most 500 values",
    ),
    (
        f"{_POST}, body: {'[' * 22}{']' * 22}}}",
        f"test.body{'[0]' * 21}",
        "20 levels deep",
    ),
    (f"{_API}, test: {{path: /me, expect: 'a..b'}}", "test.expect", "JMESPath"),
    (f"{_API}, test: {{path: /me, interval: 59s}}", "test.interval", "at least 1m, or off"),
    (f"{_API}, test: {{path: /me, interval: daily}}", "test.interval", "or off"),
    (f"{_API}, test: {{path: /me, headers: [a]}}", "test.headers", "must be a mapping"),
]

REQUESTS = [
    ("request: text", "request", "must be a mapping"),
    ("request: {header: {}}", "request.header", "did you mean headers?"),
    *(
        (f"request: {{headers: {{{name}: x}}}}", f"request.headers.{name}", fragment)
        for name, fragment in [
            ("Host", "set by tokenward itself"),
            ("content-length", "set by tokenward itself"),
            ("Transfer-Encoding", "set by tokenward itself"),
            ("Connection", "set by tokenward itself"),
            ("Upgrade", "set by tokenward itself"),
            ("Proxy-Authorization", "set by tokenward itself"),
            ("Cookie", "cookies are never sent"),
            ("Set-Cookie", "cookies are never sent"),
            ("Tokenward-Target", "between callers and tokenward"),
            ("Authorization", 'write the token into it: "token {access_token}"'),
        ]
    ),
    ("request: {headers: {'A B': x}}", 'request.headers."A B"', "letters, digits and -"),
    ("request: {headers: {'': x}}", 'request.headers.""', "letters, digits and -"),
    ("request: {headers: {A: 1, a: 2}}", "request.headers.a", "is the same header as A"),
    ("request: {headers: {A: ''}}", "request.headers.A", "must not be empty"),
    ("request: {headers: {A: ' x'}}", "request.headers.A", "printable ASCII"),
    ("request: {headers: {A: \u00fc}}", "request.headers.A", "printable ASCII"),
    ('request: {headers: {A: "x\\r\\nB: y"}}', "request.headers.A", "line breaks"),
    ("request: {headers: {A: 1.5}}", "request.headers.A", "in quotes"),
    ("request: {headers: {A: {env: X}}}", "request.headers.A", "must be text"),
    ("request: {headers: {A: '{region}'}}", "request.headers.A", "add it under fields"),
    ("request: {headers: {A: '{me.id}'}}", "request.headers.A", "configure test"),
    ("request: {headers: {A: '{token.id_token}'}}", "request.headers.A", "{access_token}, in"),
    (
        f"request: {{headers: {{{', '.join(f'A{i}: x' for i in range(51))}}}}}",
        "request.headers",
        "more than 50 headers",
    ),
    ("request: {query: {'': x}}", 'request.query.""', "have a name"),
    ("request: {query: {a: [b]}}", "request.query.a", "must be text"),
    ("request: {body: [a]}", "request.body", "must be a mapping"),
    ("request: {body: {a: {b: '{access_token}'}}}", "request.body.a.b", "must not hold the access"),
]

ACCOUNTS = [
    ("label: 7", "label", "in quotes"),
    ("label: ''", "label", "must not be empty"),
    (f"label: {'a' * 301}", "label", "at most 300"),
    ("label: '{me name}'", "label", 'an example is "{me.name} ({me.email})"'),
    ("label: 'a}'", "label", "a brace that is not part"),
    ("label: '{name}'", "label", "a value of a reply begins with one of token., me., callback."),
    ("label: '{me.name}'", "label", "configure test"),
    ("label: '{access_token}'", "label", "must not hold the access token"),
    ("label: '{token.id_token}'", "label", "is a secret"),
    ("label_mask: 'on'", "label_mask", "true or false"),
    ("account_id: 7", "account_id", "in quotes"),
    ("account_id: 'me..id'", "account_id", "JMESPath"),
    ("account_id: 'f(me.id)'", "account_id", "function"),
    ("account_id: id", "account_id", "must begin with one of fields, token, me, callback"),
    ("account_id: '@'", "account_id", "must begin with one of"),
    ("account_id: '@.id'", "account_id", "must begin with one of"),
    ("account_id: '[0]'", "account_id", "must begin with one of"),
    ("account_id: '`everybody`'", "account_id", "must begin with one of"),
    (f"{_TEST}, account_id: 'me.id || id'", "account_id", "must begin with one of"),
    ("account_id: me.id", "account_id", "configure test"),
    ("account_id: 'token.x || me.id'", "account_id", "configure test"),
    ("account_id: token.access_token", "account_id", "must not use a token"),
    ("account_id: 'token.data.{a: id_token}'", "account_id", "must not use a token"),
]

_REVOKE = "revocation_endpoint: https://a.example/r, revocation_request"

REVOCATIONS = [
    (f"{_REVOKE}: POST", "revocation_request", "must be a mapping"),
    (f"{_REVOKE}: {{url: x}}", "revocation_request.url", "not a known key"),
    (f"{_REVOKE}: {{method: PUT}}", "revocation_request.method", "one of POST, GET, DELETE"),
    (f"{_REVOKE}: {{format: xml}}", "revocation_request.format", "one of form, json"),
    (f"{_REVOKE}: {{method: GET, format: json}}", "revocation_request.format", "a GET has none"),
    (
        f"{_REVOKE}: {{authentication: basic}}",
        "revocation_request.authentication",
        "one of client, bearer, none",
    ),
    (f"{_REVOKE}: {{token_param: null}}", "revocation_request.token_param", "authentication: bear"),
    (f"{_REVOKE}: {{token_param: a b}}", "revocation_request.token_param", "name of a parameter"),
    (f"{_REVOKE}: {{token_param: 7}}", "revocation_request.token_param", "in quotes"),
    (f"{_REVOKE}: {{sends_hint: maybe}}", "revocation_request.sends_hint", "true or false"),
    (f"{_REVOKE}: {{tokens: access_token}}", "revocation_request.tokens", "must be a list"),
    (f"{_REVOKE}: {{tokens: []}}", "revocation_request.tokens", "empty list"),
    (f"{_REVOKE}: {{tokens: [id_token]}}", "revocation_request.tokens[0]", "one of refresh_token"),
    (f"{_REVOKE}: {{on_reconnect: 1}}", "revocation_request.on_reconnect", "true or false"),
    *(
        (f"{_REVOKE}: {{params: {{{name}: x}}}}", f"revocation_request.params.{name}", "set by")
        for name in ("token", "token_type_hint", "client_id", "client_secret")
    ),
    (f"{_REVOKE}: {{params: {{'': x}}}}", 'revocation_request.params.""', "have a name"),
    (f"{_REVOKE}: {{params: {{a: [x]}}}}", "revocation_request.params.a", "must be text"),
]

CASES = [*FIELDS, *URLS, *HOSTS, *TESTS, *REQUESTS, *ACCOUNTS, *REVOCATIONS]


def _text(inside: str) -> str:
    """Return a configuration; what ``inside`` says of an issuer replaces PROVIDER's."""
    own = PROVIDER.partition(", ")[2] if inside.startswith("issuer") else PROVIDER
    own = own.partition(", ")[2] if ", issuer:" in inside else own
    return f"providers: {{acme: {{{own}, {inside}}}}}"


@pytest.mark.parametrize(("inside", "below", "fragment"), CASES)
def test_bad_resource(desk: Desk, inside: str, below: str, fragment: str) -> None:
    """What could not work, or not safely, is refused with its path and what to do."""
    found = desk.findings(_text(inside))
    path = f"providers.acme.{below}"
    assert [str(one) for one in found if one.path == path and fragment in one.message], found


@pytest.mark.parametrize(
    ("inside", "path"),
    [
        ("api_base_url: api.example, test: {url: https://b.example/me}", "api_base_url"),
        (
            f"{_REGION.replace('eu', 'e_u')}, {_TENANT}, allowed_hosts: [us.api.example]",
            "fields.region.enum[1]",
        ),
    ],
)
def test_no_finding_from_a_finding(desk: Desk, inside: str, path: str) -> None:
    """What only follows from one mistake is not another."""
    assert [one.path for one in desk.findings(_text(inside))] == [f"providers.acme.{path}"]


def test_a_body_of_aliases(desk: Desk) -> None:
    """A body that multiplies itself is one finding, and takes no time."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 12)]
    inside = f"{_POST}, body: {{{', '.join(lines)}}}}}"
    (found,) = desk.findings(_text(inside))
    assert "at most 500 values" in found.message


@pytest.mark.parametrize(
    ("inside", "path", "fragment"),
    [
        ("fields: {api_key: {}}", "fields.api_key", "none should be a secret"),
        ("fields: {bot_token: {}}", "fields.bot_token", "none should be a secret"),
        ("label_mask: true", "label_mask", "has no effect without a label"),
        (
            f"{_REGION}, {_TENANT}, allowed_hosts: [us.api.example]",
            "allowed_hosts",
            "for every choice of its fields",
        ),
        (
            "fields: {region: {}}, issuer: 'https://as.example/{region}'",
            "issuer",
            "needs the field region, which a person may leave out; give that field required: true",
        ),
        ("api_base_url: http://localhost:9000", "api_base_url", "allow_private_hosts: true beside"),
        (
            "api_base_url: https://192.168.0.1",
            "api_base_url",
            "allow_private_hosts: true beside it",
        ),
        (
            "api_base_url: 'https://[::1]:80/'",
            "api_base_url",
            "allow_private_hosts: true beside it",
        ),
        ("allowed_hosts: [localhost]", "allowed_hosts", "allow_private_hosts: true beside it"),
        ("allowed_hosts: [a.example, '10.0.0.1:80']", "allowed_hosts", "allow_private_hosts: true"),
        (
            "allowed_hosts: ['127.0.0.1:80'], test: {url: 'http://127.0.0.1/me'}",
            "test.url",
            "allow_private_hosts: true",
        ),
    ],
)
def test_unwise_resource(desk: Desk, inside: str, path: str, fragment: str) -> None:
    """What works and is unwise gives one warning."""
    (warning,) = desk.load(_text(inside)).warnings
    assert warning.startswith(f"providers.acme.{path}: ")
    assert fragment in warning


def test_revocation_request_without_a_place(desk: Desk) -> None:
    """How to revoke without saying where gives a warning."""
    text = _text("revocation_request: {method: GET}").replace(
        "issuer: https://as.example",
        "authorization_endpoint: https://a.example, token_endpoint: https://a.example",
    )
    (warning,) = desk.load(text).warnings
    assert "has no effect without revocation_endpoint" in warning
