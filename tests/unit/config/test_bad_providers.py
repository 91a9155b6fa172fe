"""Provider entries that must be refused, as data: the text, the path that is named, a fragment."""

from __future__ import annotations

import pytest

from tests.support.configuration import PROVIDER, Desk

_BARE = "client_id: me, client_secret: {env: CLIENT_SECRET}"
_BOTH = "authorization_endpoint: https://a.example/a, token_endpoint: https://a.example/t"

# The inside of providers.acme, the path below it, a fragment.
PROVIDERS = [
    (_BARE, "", "needs issuer"),
    (f"{_BARE}, token_endpoint: https://a.example/t", "", "authorization_endpoint missing"),
    (f"{_BARE}, authorization_endpoint: https://a.example/a", "", "token_endpoint missing"),
    (f"{PROVIDER}, tokn_endpoint: https://a.example", "tokn_endpoint", "mean token_endpoint?"),
    (f"{PROVIDER}, Client_ID: me", "Client_ID", "mean client_id?"),
    (f"{PROVIDER}, redirect_uri: https://a.example", "redirect_uri", "followed by /callback"),
    (f"{PROVIDER}, response_type: token", "response_type", "RFC 9700 2.1.2"),
    (f"{PROVIDER}, preset: github", "preset", "not supported by this version of tokenward"),
    (f"{PROVIDER}, revocation_endpoint: http://a.example/r", "revocation_endpoint", "be https"),
    (f"{PROVIDER}, introspection_endpoint: a.example", "introspection_endpoint", "https://"),
    (f"{_BARE}, issuer: http://as.example", "issuer", "must be https"),
    (f"{_BARE}, issuer: 'https://as.example?x=y'", "issuer", "query"),
    (f"{_BARE}, issuer: 7", "issuer", "put it in quotes"),
    (f"{PROVIDER}, token_endpoint: http://a.example/t", "token_endpoint", "must be https"),
    (f"{PROVIDER}, token_endpoint: 'https://a.example/t#f'", "token_endpoint", "fragment"),
    (f"{PROVIDER}, token_endpoint: https://u:p@a.example/t", "token_endpoint", "user name"),
    (f"{PROVIDER}, refresh_endpoint: http://a.example/t", "refresh_endpoint", "must be https"),
    (
        f"{PROVIDER}, authorization_endpoint: 'https://a.example/a?state=1'",
        "authorization_endpoint",
        "parameter of the protocol",
    ),
    ("issuer: https://a.example, client_secret: {env: CLIENT_SECRET}", "client_id", "is missing"),
    ("issuer: https://a.example, client_id: me", "client_secret", "is missing"),
    ("issuer: https://a.example, client_id: 12.5, client_secret: x", "client_id", "in quotes"),
    (
        f"{PROVIDER}, token_endpoint_auth_method: none",
        "client_secret",
        "not used with token_endpoint_auth_method: none",
    ),
    (
        f"{PROVIDER}, token_endpoint_auth_method: private_key_jwt",
        "token_endpoint_auth_method",
        "not supported by this version of tokenward",
    ),
    (f"{PROVIDER}, token_endpoint_auth_method: basic", "token_endpoint_auth_method", "one of"),
    (f"{PROVIDER}, grant: implicit", "grant", "RFC 9700 2.1.2"),
    (f"{PROVIDER}, grant: password", "grant", "RFC 9700 2.4"),
    (f"{PROVIDER}, grant: client_credentials", "grant", "not supported by this version"),
    (f"{PROVIDER}, grant: [implicit]", "grant", "must be one of authorization_code"),
    (f"{PROVIDER}, scopes: ['a b']", "scopes[0]", "one scope"),
    (f"{PROVIDER}, scopes: 'a,b', scope_separator: ','", "scopes", "scope_separator"),
    (f"{PROVIDER}, scopes: 3", "scopes", "must be a list"),
    (f"{PROVIDER}, scopes: [null]", "scopes[0]", "must not be empty"),
    (f"{PROVIDER}, scope_separator: ''", "scope_separator", "separator in quotes"),
    (f"{PROVIDER}, scope_separator: and", "scope_separator", "separator in quotes"),
    (f"{PROVIDER}, pkce: plain", "pkce", "S256 or off"),
    (f"{PROVIDER}, pkce: true", "pkce", "S256 or off"),
    (f"{PROVIDER}, authorization_params: a", "authorization_params", "must be a mapping"),
    (
        f"{PROVIDER}, authorization_params: {{response_type: token}}",
        "authorization_params.response_type",
        "RFC 9700 2.1.2",
    ),
    (
        f"{PROVIDER}, authorization_params: {{response_type: code}}",
        "authorization_params.response_type",
        "set by tokenward itself",
    ),
    (
        f"{PROVIDER}, authorization_params: {{scope: a}}",
        "authorization_params.scope",
        "set from scopes",
    ),
    (
        f"{PROVIDER}, authorization_params: {{response_mode: fragment}}",
        "authorization_params.response_mode",
        "query or form_post",
    ),
    (f"{PROVIDER}, authorization_params: {{State: x}}", "authorization_params.State", "set by"),
    (f"{PROVIDER}, authorization_params: {{a: true}}", "authorization_params.a", "in quotes"),
    (f"{PROVIDER}, authorization_params: {{a: [b]}}", "authorization_params.a", "must be text"),
    (f"{PROVIDER}, authorization_params: {{'': b}}", 'authorization_params.""', "have a name"),
    (f"{PROVIDER}, token_params: {{grant_type: password}}", "token_params.grant_type", "2.4"),
    (f"{PROVIDER}, token_params: {{client_secret: x}}", "token_params.client_secret", "set by"),
    (f"{PROVIDER}, token_params: {{code: x}}", "token_params.code", "set by tokenward"),
    (f"{PROVIDER}, refresh_params: {{refresh_token: x}}", "refresh_params.refresh_token", "set by"),
    (f"{PROVIDER}, token_request_format: xml", "token_request_format", "one of form, json"),
    (f"{PROVIDER}, token_response: {{id_token: x}}", "token_response.id_token", "RFC 6749 5.1"),
    (f"{PROVIDER}, token_response: {{scope: 'a..b'}}", "token_response.scope", "JMESPath"),
    (f"{PROVIDER}, token_response: {{scope: 'f(@)'}}", "token_response.scope", "function"),
    (f"{PROVIDER}, token_response: {{scope: {'a' * 301}}}", "token_response.scope", "at most 300"),
    (f"{PROVIDER}, default_lifetime: 0", "default_lifetime", "longer than zero"),
    (f"{PROVIDER}, default_lifetime: soon", "default_lifetime", "or never, where tokens do not"),
    (f"{PROVIDER}, rotation: grace", "rotation", "{grace: 30s}"),
    (f"{PROVIDER}, rotation: {{grace: 30s, x: 1}}", "rotation", "{grace: 30s}"),
    (f"{PROVIDER}, rotation: {{grace: 30}}, concurrency: 0", "concurrency", "from 1"),
    (f"{PROVIDER}, rotation: {{grace: 0}}", "rotation.grace", "longer than zero"),
    (f"{PROVIDER}, rotation: {{grace: 1w}}", "rotation.grace", "the units are"),
    (f"{PROVIDER}, rotation: null", "rotation", "must be static"),
    (f"{PROVIDER}, rate: 10", "rate", "10/s"),
    (f"{PROVIDER}, rate: 10/d", "rate", "10/s"),
    (f"{PROVIDER}, rate: 0/s", "rate", "more than zero"),
    (f"{PROVIDER}, rate: -1/s", "rate", "10/s"),
    (f"{_BARE}, {_BOTH}, client_secret: x", "client_secret", "there twice"),
    ("issuer: https://a.example, client_id: me, client_secret: []", "client_secret", "empty list"),
    ("issuer: https://a.example, client_id: me, client_secret: [1]", "client_secret[0]", "quotes"),
    (
        "issuer: https://a.example, client_id: me, client_secret: [[a]]",
        "client_secret[0]",
        "{file: PATH}",
    ),
]

NAMES = [
    (f"providers: {{Acme: {{{PROVIDER}}}}}", "providers.Acme", "lower-case"),
    (f"providers: {{'a.b': {{{PROVIDER}}}}}", 'providers."a.b"', "lower-case"),
    (f"providers: {{{'a' * 64}: {{{PROVIDER}}}}}", f"providers.{'a' * 64}", "1 to 63"),
    (f"providers: {{1: {{{PROVIDER}}}}}", "providers", "every key in quotes"),
    ("providers: {acme: null}", "providers.acme.client_id", "is missing"),
    ("providers: {acme: text}", "providers.acme", "must be a mapping"),
    ("providers: [acme]", "providers", "must be a mapping"),
    (
        f"providers: {{one: {{{PROVIDER}}}, two: {{{PROVIDER}}}}}",
        "providers.two.issuer",
        "issuer of providers.one",
    ),
]

CASES = [
    *(
        (f"providers: {{acme: {{{inside}}}}}", f"providers.acme.{below}".rstrip("."), fragment)
        for inside, below, fragment in PROVIDERS
    ),
    *NAMES,
]


@pytest.mark.parametrize(("text", "path", "fragment"), CASES)
def test_bad_provider(desk: Desk, text: str, path: str, fragment: str) -> None:
    """A bad provider entry is refused with the path of what is wrong and what to do."""
    found = desk.findings(text)
    assert [str(one) for one in found if one.path == path and fragment in one.message], found
