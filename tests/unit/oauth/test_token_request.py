"""What goes over the wire to a token endpoint."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from urllib.parse import parse_qsl, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from daemon import __version__
from daemon.domain.provider import ClientAuthentication, Provider, RequestFormat
from daemon.oauth.token_request import EncodedRequest, Exchange, Refresh, encode, secrets_of

PROVIDER = Provider(name="acme", client_id="client", scopes=("read",))
SECRET = SecretStr("s3cret")
EXCHANGE = Exchange(
    code="c/d+e=", redirect_uri="http://localhost:7421/callback", code_verifier="v" * 43
)
REFRESH = Refresh(refresh_token="rt 1&é")
POST = replace(PROVIDER, token_endpoint_auth_method=ClientAuthentication.CLIENT_SECRET_POST)
PUBLIC = replace(PROVIDER, token_endpoint_auth_method=ClientAuthentication.NONE)


def form(request: EncodedRequest) -> list[tuple[str, str]]:
    """Return the body's pairs, in order."""
    return parse_qsl(request.body.decode("ascii"), strict_parsing=True, keep_blank_values=True)


def test_a_code_is_exchanged_with_its_redirect_uri_and_verifier() -> None:
    """RFC 6749 4.1.3 and RFC 7636 4.5: the exchange repeats the redirect URI byte for byte."""
    assert form(encode(PROVIDER, SECRET, EXCHANGE)) == [
        ("grant_type", "authorization_code"),
        ("code", "c/d+e="),
        ("redirect_uri", "http://localhost:7421/callback"),
        ("code_verifier", "v" * 43),
    ]


def test_without_pkce_no_verifier_is_sent() -> None:
    """A provider with PKCE off gets no code_verifier."""
    request = encode(PROVIDER, SECRET, replace(EXCHANGE, code_verifier=None))
    assert "code_verifier" not in dict(form(request))


def test_a_refresh_sends_no_scope() -> None:
    """B11: without a wish the scope stays what was granted."""
    assert form(encode(PROVIDER, SECRET, REFRESH)) == [
        ("grant_type", "refresh_token"),
        ("refresh_token", "rt 1&é"),
    ]


def test_a_refresh_may_name_scopes() -> None:
    """Scopes are joined by the provider's separator."""
    provider = replace(PROVIDER, scope_separator=",")
    request = encode(provider, SECRET, replace(REFRESH, scopes=("a", "b")))
    assert dict(form(request))["scope"] == "a,b"


def test_the_headers_of_a_request() -> None:
    """A request asks for plain JSON on a connection of its own, and says who asks."""
    assert encode(PUBLIC, None, REFRESH).headers == {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"tokenward/{__version__}",
    }


@pytest.mark.parametrize(
    ("client_id", "secret", "credentials"),
    [
        ("client", "s3cret", "client:s3cret"),
        ("a:b", "c:d", "a%3Ab:c%3Ad"),
        ("100%", "50%25", "100%25:50%2525"),
        ("a+b", "c d", "a%2Bb:c+d"),
        ("é", "ü\u20ac", "%C3%A9:%C3%BC%E2%82%AC"),
        ("https://app.example/", "", "https%3A%2F%2Fapp.example%2F:"),
        ("a_b-c.d~e", "x", "a_b-c.d~e:x"),
    ],
)
def test_basic_credentials_are_form_encoded_first(
    client_id: str, secret: str, credentials: str
) -> None:
    """B3: RFC 6749 2.3.1 encodes both parts before base64, and then sends no other credentials."""
    request = encode(replace(PROVIDER, client_id=client_id), SecretStr(secret), REFRESH)
    kind, _, value = request.headers["Authorization"].partition(" ")
    assert (kind, b64decode(value).decode("ascii")) == ("Basic", credentials)
    assert {"client_id", "client_secret"}.isdisjoint(dict(form(request)))


def test_post_credentials_stand_in_the_body() -> None:
    """client_secret_post puts both into the body and none into a header."""
    request = encode(POST, SECRET, REFRESH)
    assert dict(form(request)) == {
        "grant_type": "refresh_token",
        "refresh_token": "rt 1&é",
        "client_id": "client",
        "client_secret": "s3cret",
    }
    assert "Authorization" not in request.headers


def test_a_public_client_only_names_itself() -> None:
    """With none the client id goes along, and a configured secret does not."""
    request = encode(PUBLIC, SECRET, REFRESH)
    assert dict(form(request))["client_id"] == "client"
    assert "client_secret" not in dict(form(request))
    assert "Authorization" not in request.headers


def test_json_bodies() -> None:
    """Where the provider wants JSON, the same parameters come as one object."""
    provider = replace(POST, token_request_format=RequestFormat.JSON)
    request = encode(provider, SECRET, REFRESH)
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {
        "grant_type": "refresh_token",
        "refresh_token": "rt 1&é",
        "client_id": "client",
        "client_secret": "s3cret",
    }


def test_configured_params_add_and_never_replace() -> None:
    """token_params go with an exchange, refresh_params with a refresh; ours win over both."""
    provider = replace(
        POST,
        token_params={"audience": "a", "code": "x"},
        refresh_params={"resource": "r", "refresh_token": "x", "client_secret": "x"},
    )
    exchanged = dict(form(encode(provider, SECRET, EXCHANGE)))
    refreshed = dict(form(encode(provider, SECRET, REFRESH)))
    assert (exchanged["audience"], exchanged["code"]) == ("a", "c/d+e=")
    assert "resource" not in exchanged
    assert (refreshed["resource"], refreshed["refresh_token"]) == ("r", "rt 1&é")
    assert refreshed["client_secret"] == "s3cret"
    assert "audience" not in refreshed


def test_a_configured_scope_is_sent() -> None:
    """A server that wants a scope with each refresh gets the one from refresh_params."""
    provider = replace(PROVIDER, refresh_params={"scope": "offline"})
    assert dict(form(encode(provider, SECRET, REFRESH)))["scope"] == "offline"


@given(client_id=st.text(min_size=1), secret=st.text(), token=st.text(min_size=1))
def test_what_is_encoded_can_be_decoded(client_id: str, secret: str, token: str) -> None:
    """Whatever the credentials and the token, the server reads back what was meant."""
    provider = replace(PROVIDER, client_id=client_id)
    request = encode(provider, SecretStr(secret), Refresh(refresh_token=token))
    credentials = b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode()
    assert [unquote_plus(part) for part in credentials.split(":")] == [client_id, secret]
    assert dict(form(request))["refresh_token"] == token


@pytest.mark.parametrize("message", [EXCHANGE, replace(EXCHANGE, code_verifier=None), REFRESH])
def test_nothing_secret_is_in_a_repr(message: Exchange | Refresh) -> None:
    """Messages and requests may be logged."""
    shown = repr(message) + repr(encode(POST, SECRET, message))
    shown += repr(encode(PROVIDER, SECRET, message))
    secrets = secrets_of(message, SECRET)
    assert "s3cret" in secrets
    assert not any(secret in shown for secret in secrets)


def test_the_secrets_of_a_request() -> None:
    """What must not be repeated is told for each kind of message."""
    assert secrets_of(EXCHANGE, None) == ("c/d+e=", "v" * 43)
    assert secrets_of(REFRESH, SecretStr("")) == ("rt 1&é",)
