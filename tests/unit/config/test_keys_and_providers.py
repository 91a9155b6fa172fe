"""Callers, encryption keys and providers that are accepted, and what becomes of them."""

from __future__ import annotations

import base64
import hashlib
from datetime import timedelta

import pytest

from daemon.config.settings import Permission
from daemon.domain.provider import (
    ClientAuthentication,
    Endpoints,
    Provider,
    RequestFormat,
    Rotation,
    RotationKind,
)
from tests.support.configuration import PROVIDER, Desk

_KEY = "0123456789abcdefghij"
_BYTES = bytes(range(200, 232))


def _acme(desk: Desk, inside: str) -> Provider:
    return desk.load(f"providers: {{acme: {{{inside}}}}}").providers["acme"]


def test_caller_key(desk: Desk) -> None:
    """A caller's key and the digest of it are the same thing, capitals or not."""
    digest = hashlib.sha256(_KEY.encode()).digest()
    rest = "connections: ['acme-*', '[ab]?:x', '*'], permissions: [token, manage, token]"
    for key in ("key: {env: K}", f"key_sha256: '{digest.hex().upper()}'"):
        (caller,) = desk.load(f"callers: [{{name: a, {key}, {rest}}}]", environ={"K": _KEY}).callers
        assert caller.key_sha256 == digest
        assert caller.connections == ("acme-*", "[ab]?:x", "*")
        assert caller.permissions == {Permission.TOKEN, Permission.MANAGE}


def test_idle_caller(desk: Desk) -> None:
    """A caller that may do nothing gives a warning for each reason."""
    warnings = desk.load("callers: [{name: a, key: {env: K}}]", environ={"K": _KEY}).warnings
    assert [warning.partition(":")[0] for warning in warnings] == [
        "callers[0].connections",
        "callers[0].permissions",
    ]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", ["=", ""])
def test_encryption_key(desk: Desk, encode: object, padding: str) -> None:
    """Base64 of either alphabet is taken, padded or not; the order is kept."""
    assert callable(encode)
    secret = encode(_BYTES).decode().replace("=", padding)
    text = "encryption: {keys: [{id: '2026-11', secret: {env: K}}, {id: old, secret: {env: K}}]}"
    keys = desk.load(text, environ={"K": secret}).encryption_keys
    assert [(key.id, key.secret) for key in keys] == [("2026-11", _BYTES), ("old", _BYTES)]


def test_smallest_provider(desk: Desk) -> None:
    """A provider needs little; the rest has the defaults of the domain."""
    provider = _acme(desk, PROVIDER)
    assert provider == Provider(
        name="acme",
        client_id="me",
        client_secrets=provider.client_secrets,
        issuer="https://as.example",
    )


def test_whole_provider(desk: Desk) -> None:
    """Every key of a provider arrives where it belongs."""
    provider = _acme(
        desk,
        """
        authorization_endpoint: https://a.example/authorize?tenant=1,
        token_endpoint: https://a.example/token, refresh_endpoint: http://127.0.0.1:1/refresh,
        grant: authorization_code, client_id: me, token_endpoint_auth_method: client_secret_post,
        client_secret: [{env: CLIENT_SECRET}], scopes: [b, a, b], scope_separator: ",", pkce: off,
        authorization_params: {access_type: offline, max_age: 3600, prompt: "",
        response_mode: form_post}, token_params: {x: y, scope: a}, refresh_params: {z: w},
        token_request_format: json, token_response: {access_token: authed_user.access_token,
        scope: "join(' ', scopes[0:2])"}, default_lifetime: 2h, rotation: {grace: 30s},
        concurrency: 2, rate: 30/m
        """,
    )
    assert provider.issuer is None
    assert provider.endpoints == Endpoints(
        authorization="https://a.example/authorize?tenant=1",
        token="https://a.example/token",
        refresh="http://127.0.0.1:1/refresh",
    )
    assert provider.token_endpoint_auth_method is ClientAuthentication.CLIENT_SECRET_POST
    assert (provider.scopes, provider.scope_separator, provider.pkce) == (("b", "a"), ",", False)
    assert provider.authorization_params == {
        "access_type": "offline",
        "max_age": "3600",
        "prompt": "",
        "response_mode": "form_post",
    }
    assert provider.token_params == {"x": "y", "scope": "a"}
    assert provider.refresh_params == {"z": "w"}
    assert provider.token_request_format is RequestFormat.JSON
    reply = {"authed_user": {"access_token": "t"}, "scopes": ["a", "b"]}
    selected = {name: found.search(reply) for name, found in provider.token_response.items()}
    assert selected == {"access_token": "t", "scope": "a b"}
    assert provider.default_lifetime == timedelta(hours=2)
    assert provider.rotation == Rotation(RotationKind.GRACE, timedelta(seconds=30))
    assert (provider.concurrency, provider.rate) == (2, 0.5)


@pytest.mark.parametrize(("written", "pkce"), [("S256", True), ("off", False), ("false", False)])
def test_pkce(desk: Desk, written: str, pkce: bool) -> None:  # noqa: FBT001 - a table's column
    """PKCE is S256 or off, and ``false`` is off as well."""
    assert _acme(desk, f"{PROVIDER}, pkce: {written}").pkce is pkce


@pytest.mark.parametrize("kind", ["static", "overlap", "strict"])
def test_rotation(desk: Desk, kind: str) -> None:
    """A rotation without a grace is its word."""
    assert _acme(desk, f"{PROVIDER}, rotation: {kind}").rotation == Rotation(RotationKind(kind))


def test_short_grace(desk: Desk) -> None:
    """A grace below 20 seconds is strict, and a warning says so."""
    settings = desk.load(f"providers: {{acme: {{{PROVIDER}, rotation: {{grace: 19s}}}}}}")
    assert settings.providers["acme"].rotation == Rotation(RotationKind.STRICT)
    (warning,) = settings.warnings
    assert warning.startswith("providers.acme.rotation.grace: ")
    assert "behaves as strict" in warning


def test_scopes_as_text(desk: Desk) -> None:
    """Scopes may be one text with spaces between."""
    assert _acme(desk, f"{PROVIDER}, scopes: ' read  write read '").scopes == ("read", "write")


def test_public_client(desk: Desk) -> None:
    """A public client has no secret; without PKCE it gives a warning."""
    inside = "issuer: https://as.example, client_id: me, token_endpoint_auth_method: none"
    settings = desk.load(f"providers: {{acme: {{{inside}}}}}")
    assert settings.providers["acme"].client_secrets == ()
    assert settings.warnings == ()
    settings = desk.load(f"providers: {{acme: {{{inside}, pkce: off}}}}")
    assert [warning.partition(":")[0] for warning in settings.warnings] == ["providers.acme.pkce"]


def test_one_issuer_twice(desk: Desk) -> None:
    """Two registrations at one issuer are two providers."""
    other = PROVIDER.replace("me", "you")
    text = f"providers: {{production: {{{PROVIDER}}}, sandbox: {{{other}}}}}"
    assert list(desk.load(text).providers) == ["production", "sandbox"]
