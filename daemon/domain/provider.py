"""A provider: one authorization server plus our client registration at it (RFC 6749 1.1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from jmespath.parser import ParsedResult
from pydantic import SecretStr


class Grant(StrEnum):
    """How a connection obtains its tokens (RFC 6749 1.3)."""

    AUTHORIZATION_CODE = "authorization_code"


class ClientAuthentication(StrEnum):
    """``token_endpoint_auth_method`` of RFC 7591 section 2."""

    CLIENT_SECRET_BASIC = "client_secret_basic"
    CLIENT_SECRET_POST = "client_secret_post"
    NONE = "none"


class RequestFormat(StrEnum):
    """Encoding of a token request's body; RFC 6749 4.1.3 says ``form``."""

    FORM = "form"
    JSON = "json"


class RotationKind(StrEnum):
    """What a server does with a refresh token that has been used (RFC 9700 4.14.2)."""

    STATIC = "static"
    """The token stays the same and stays valid."""
    OVERLAP = "overlap"
    """A new token comes; the old one stays valid."""
    GRACE = "grace"
    """A new token comes; the old one works for a stated time, then its use kills the grant."""
    STRICT = "strict"
    """A new token comes; any further use of the old one may kill the grant."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation profile. ``grace`` is set for, and only for, ``RotationKind.GRACE``."""

    kind: RotationKind = RotationKind.STRICT
    grace: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Absolute URLs of a provider. ``None`` means not configured (discovery may fill it in)."""

    authorization: str | None = None
    token: str | None = None
    refresh: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Everything the daemon knows of one provider entry of the configuration.

    ``rate`` is in token requests a second, fleet-wide and sustained; ``concurrency`` in refreshes
    in flight in this process; ``default_lifetime`` holds where a reply has no usable
    ``expires_in``; ``requires_iss`` tells that the server's metadata promises ``iss`` in every
    authorization response (RFC 9207 3); ``token_response`` maps an RFC 6749 5.1 member name to the
    selector that finds it in this provider's replies.
    """

    name: str
    client_id: str
    client_secrets: tuple[SecretStr, ...] = field(default=(), repr=False)
    issuer: str | None = None
    requires_iss: bool = False
    endpoints: Endpoints = Endpoints()
    grant: Grant = Grant.AUTHORIZATION_CODE
    token_endpoint_auth_method: ClientAuthentication = ClientAuthentication.CLIENT_SECRET_BASIC
    scopes: tuple[str, ...] = ()
    scope_separator: str = " "
    pkce: bool = True
    authorization_params: Mapping[str, str] = field(default_factory=dict)
    token_params: Mapping[str, str] = field(default_factory=dict)
    refresh_params: Mapping[str, str] = field(default_factory=dict)
    token_request_format: RequestFormat = RequestFormat.FORM
    token_response: Mapping[str, ParsedResult] = field(default_factory=dict)
    default_lifetime: timedelta | None = None
    rotation: Rotation = Rotation()
    concurrency: int = 8
    rate: float = 10.0
