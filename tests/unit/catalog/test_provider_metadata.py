"""Where metadata lies, and what in it counts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.catalog.metadata import is_safe_endpoint, metadata_urls, read_metadata
from daemon.domain.errors import DiscoveryError

ISSUER = "https://auth.acme.example"
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
}


@pytest.mark.parametrize(
    ("issuer", "urls"),
    [
        (
            "https://a.example",
            (
                "https://a.example/.well-known/oauth-authorization-server",
                "https://a.example/.well-known/openid-configuration",
            ),
        ),
        (
            "https://a.example/",
            (
                "https://a.example/.well-known/oauth-authorization-server",
                "https://a.example/.well-known/openid-configuration",
            ),
        ),
        (
            "https://a.example:8443/tenant/1/",
            (
                "https://a.example:8443/.well-known/oauth-authorization-server/tenant/1",
                "https://a.example:8443/tenant/1/.well-known/openid-configuration",
                "https://a.example:8443/.well-known/openid-configuration/tenant/1",
            ),
        ),
    ],
)
def test_where_metadata_lies(issuer: str, urls: tuple[str, ...]) -> None:
    """RFC 8414 3.1 inserts before the path, OpenID appends behind it; a last slash is dropped."""
    assert metadata_urls(issuer) == urls


def test_a_whole_document() -> None:
    """What the daemon needs of a document is read, the rest is ignored."""
    document = DOCUMENT | {
        "authorization_response_iss_parameter_supported": True,
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint": f"{ISSUER}/revoke",
        "revocation_endpoint_auth_methods_supported": ["client_secret_post"],
        "introspection_endpoint": f"{ISSUER}/introspect",
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
        "jwks_uri": 17,
    }
    metadata = read_metadata(ISSUER, json.dumps(document).encode())
    assert metadata.token_endpoint == f"{ISSUER}/token"
    assert metadata.authorization_endpoint == f"{ISSUER}/authorize"
    assert metadata.iss_parameter_supported
    assert metadata.code_challenge_methods == ("S256",)
    assert metadata.token_endpoint_auth_methods == ("none",)
    assert metadata.revocation_endpoint == f"{ISSUER}/revoke"
    assert metadata.revocation_endpoint_auth_methods == ("client_secret_post",)
    assert metadata.introspection_endpoint == f"{ISSUER}/introspect"
    assert metadata.introspection_endpoint_auth_methods == ("client_secret_basic",)


def test_what_a_document_leaves_out() -> None:
    """Absent members are told as unknown, and iss is not promised."""
    metadata = read_metadata(ISSUER, b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode())
    assert not metadata.iss_parameter_supported
    assert (metadata.code_challenge_methods, metadata.token_endpoint_auth_methods) == (None, None)


UNUSABLE_CHANGES: list[dict[str, object]] = [
    {"issuer": f"{ISSUER}/"},
    {"issuer": ISSUER.upper()},
    {"issuer": f"{ISSUER}:443"},
    {"issuer": None},
    {"issuer": [ISSUER]},
    {"token_endpoint": None},
    {"token_endpoint": ""},
    {"token_endpoint": 17},
    {"token_endpoint": [f"{ISSUER}/token"]},
    {"token_endpoint": "/token"},
    {"token_endpoint": "http://auth.acme.example/token"},
    {"token_endpoint": f"{ISSUER}/token#x"},
    {"authorization_endpoint": "http://auth.acme.example/authorize"},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"authorization_endpoint": {}},
    {"authorization_response_iss_parameter_supported": "true"},
    {"code_challenge_methods_supported": "S256"},
    {"code_challenge_methods_supported": [None]},
    {"token_endpoint_auth_methods_supported": {}},
    {"revocation_endpoint": "http://auth.acme.example/revoke"},
    {"revocation_endpoint": 17},
    {"revocation_endpoint": f"https://user@{ISSUER[8:]}/revoke"},
    {"revocation_endpoint_auth_methods_supported": "none"},
    {"introspection_endpoint": "file:///etc/passwd"},
    {"introspection_endpoint_auth_methods_supported": [1]},
]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"<html></html>",
        b"\xff",
        b'{"a":' * 100_000,
        b'{"issuer": ' + b"9" * 5_000 + b"}",
        *(json.dumps(DOCUMENT | change).encode() for change in UNUSABLE_CHANGES),
    ],
)
def test_a_document_counts_whole_or_not_at_all(document: bytes) -> None:
    """C1: another issuer, an unsafe endpoint, a wrong type: nothing of the document is used."""
    with pytest.raises(DiscoveryError):
        read_metadata(ISSUER, document)


@given(document=st.binary() | st.dictionaries(st.text(), st.text()).map(json.dumps).map(str.encode))
def test_no_document_surprises(document: bytes) -> None:
    """Any document is refused with the one error that callers expect."""
    with pytest.raises(DiscoveryError):
        read_metadata(ISSUER, document)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://a.example/token", True),
        ("https://a.example:8443/token?tenant=1", True),
        ("http://localhost:9000/token", True),
        ("http://127.0.0.1/token", True),
        ("http://127.8.8.8/token", True),
        ("http://[::1]:9000/token", True),
        ("http://a.example/token", False),
        ("http://localhost.example/token", False),
        ("http://127.0.0.1.example/token", False),
        ("http://0.0.0.0/token", False),
        ("http://2130706433/token", False),
        ("https://", False),
        ("https:///token", False),
        ("https:a.example/token", False),
        ("//a.example/token", False),
        ("https://user@a.example/token", False),
        ("https://a.example/token#fragment", False),
        ("https://a.example/token#", False),
        ("https://a.example\\@b.example/token", False),
        ("https://a.example/to ken", False),
        ("https://a.example/token\n", False),
        ("https://\u00e4.example/token", False),
        ("https://a.example:x/token", False),
        ("https://a.example:99999/token", False),
        ("https://[::1/token", False),
        ("ftp://a.example/token", False),
    ],
)
def test_where_a_secret_may_go(url: str, *, safe: bool) -> None:
    """A secret goes by https, by http only within this machine, and to no ambiguous URL."""
    assert is_safe_endpoint(url) is safe
