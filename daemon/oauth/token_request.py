"""[exchange] What is sent to a token endpoint (RFC 6749 4.1.3, 6 and 2.3.1). Pure.

One client authentication method per request, and nothing secret anywhere but in a header or the
body.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never
from urllib.parse import quote_plus, urlencode

from pydantic import SecretStr

from daemon import __version__
from daemon.domain.provider import ClientAuthentication, Provider, RequestFormat

# GitHub refuses requests without one.
USER_AGENT = f"tokenward/{__version__}"
CONTENT_TYPES = {
    RequestFormat.FORM: "application/x-www-form-urlencoded",
    RequestFormat.JSON: "application/json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An authorization code to exchange (RFC 6749 4.1.3, RFC 7636 4.5)."""

    code: str = field(repr=False)
    redirect_uri: str
    code_verifier: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """A refresh token to use (RFC 6749 6). Without ``scopes`` the scope stays what was granted."""

    refresh_token: str = field(repr=False)
    scopes: tuple[str, ...] = ()


Message = Exchange | Refresh


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRequest:
    """A request as it goes out. Both parts may hold secrets."""

    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientProof:
    """What authenticates our client (RFC 6749 2.3.1): headers and parameters, to be added."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    params: Mapping[str, str] = field(default_factory=dict, repr=False)


def encode(provider: Provider, secret: SecretStr | None, message: Message) -> EncodedRequest:
    """Return headers and body of a token request.

    ``secret`` is the client secret to use now; without one the client authenticates with an empty
    one, or, for a public client, not at all. ``token_params`` go with an exchange,
    ``refresh_params`` with a refresh; they add to the request and never replace what is ours.
    """
    params = _params(provider, message)
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": CONTENT_TYPES[provider.token_request_format],
        "User-Agent": USER_AGENT,
    }
    proof = client_authentication(provider, secret)
    body = encoded_body(provider.token_request_format, {**params, **proof.params})
    return EncodedRequest(headers={**headers, **proof.headers}, body=body)


def client_authentication(provider: Provider, secret: SecretStr | None) -> ClientProof:
    """Return what authenticates our client, at the token endpoint and wherever RFCs say the same.

    Without ``secret`` it is an empty one, or, for a public client, none at all.
    """
    password = "" if secret is None else secret.get_secret_value()
    match provider.token_endpoint_auth_method:
        case ClientAuthentication.CLIENT_SECRET_BASIC:
            return ClientProof(headers={"Authorization": _basic(provider.client_id, password)})
        case ClientAuthentication.CLIENT_SECRET_POST:
            return ClientProof(params={"client_id": provider.client_id, "client_secret": password})
        case ClientAuthentication.NONE:
            return ClientProof(params={"client_id": provider.client_id})
        case _:
            assert_never(provider.token_endpoint_auth_method)


def client_secrets(provider: Provider) -> tuple[SecretStr | None, ...]:
    """Return the client secrets to try, in order; never empty."""
    if provider.token_endpoint_auth_method is ClientAuthentication.NONE:
        return (None,)
    return provider.client_secrets or (None,)


def secrets_of(message: Message, secret: SecretStr | None) -> tuple[str, ...]:
    """Return what must not be repeated anywhere: the token, code, verifier and client secret."""
    if isinstance(message, Exchange):
        parts = [message.code, message.code_verifier]
    else:
        parts = [message.refresh_token]
    if secret is not None:
        parts.append(secret.get_secret_value())
    return tuple(part for part in parts if part)


def _params(provider: Provider, message: Message) -> dict[str, str]:
    if isinstance(message, Exchange):
        ours = {
            "grant_type": "authorization_code",
            "code": message.code,
            "redirect_uri": message.redirect_uri,
        }
        if message.code_verifier is not None:
            ours["code_verifier"] = message.code_verifier
        return {**provider.token_params, **ours}
    ours = {"grant_type": "refresh_token", "refresh_token": message.refresh_token}
    if message.scopes:
        ours["scope"] = provider.scope_separator.join(message.scopes)
    return {**provider.refresh_params, **ours}


def _basic(client_id: str, client_secret: str) -> str:
    """RFC 6749 2.3.1: both are form-encoded first, so that a colon in either cannot mislead."""
    credentials = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return "Basic " + b64encode(credentials.encode("ascii")).decode("ascii")


def encoded_body(encoding: RequestFormat, params: Mapping[str, str]) -> bytes:
    """Return parameters as the body of a request of that format."""
    if encoding is RequestFormat.JSON:
        return json.dumps(params).encode("utf-8")
    return urlencode(params).encode("ascii")
