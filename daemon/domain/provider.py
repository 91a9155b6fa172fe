"""A provider: one authorization server plus our client registration at it (RFC 6749 1.1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum

from jmespath.parser import ParsedResult
from pydantic import SecretStr

from daemon.domain.fields import Field
from daemon.domain.templates import Template, TemplateError, parse_url_template, render_url

# A JSON value whose texts are templates: what a test request or a proxied body is made of.
BodyTemplate = (
    Template | bool | int | float | None | list["BodyTemplate"] | dict[str, "BodyTemplate"]
)


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
    """Absolute URLs of a provider. ``None`` means not configured (discovery may fill it in).

    As configured they may hold ``{field}``; ``provider_for`` puts a connection's values in.
    """

    authorization: str | None = None
    token: str | None = None
    refresh: str | None = None
    revocation: str | None = None
    introspection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRequest:
    """The request that tells whether a token works, and whose it is.

    Exactly one of ``path`` (below ``api_base_url``) and ``url`` is set. What ``Provider.request``
    puts on every request is on this one, too, but for what needs this one's reply (``me.``);
    ``headers`` and ``query`` go before it, and may hold ``{access_token}``. ``body`` is sent as
    JSON, or as a form where the headers say so. ``expect`` must be truthy for the reply to count as
    good. ``interval`` is how often each connection is tested by itself (``None``: never);
    ``only_unexpiring`` limits that to tokens without an expiry, whose end nothing else would tell.
    """

    __test__ = False  # not a test of ours

    method: str = "GET"
    path: Template | None = None
    url: Template | None = None
    headers: Mapping[str, Template] = field(default_factory=dict)
    query: Mapping[str, Template] = field(default_factory=dict)
    body: BodyTemplate = None
    expect: ParsedResult | None = None
    interval: timedelta | None = timedelta(hours=24)
    only_unexpiring: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestValues:
    """What is put on every proxied request. ``body`` is merged into JSON objects and forms.

    ``headers`` and ``query`` alone may hold ``{access_token}``, for APIs that want it there: a name
    like any other (``templates.ACCESS_TOKENS``), which the sender fills in and nobody stores. Then
    the token is sent there only (RFC 6750 2: one method in a request), else as ``Authorization:
    Bearer``. ``headers`` never name what belongs to the transport, nor cookies.
    """

    headers: Mapping[str, Template] = field(default_factory=dict)
    query: Mapping[str, Template] = field(default_factory=dict)
    body: Mapping[str, BodyTemplate] = field(default_factory=dict)


class RevocationAuthentication(StrEnum):
    """Who a revocation request says it comes from."""

    CLIENT = "client"
    """As at the token endpoint (RFC 7009 2.1)."""
    BEARER = "bearer"
    """The token itself is the credential."""
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRequest:
    """How a token is revoked; the defaults are RFC 7009's.

    ``tokens`` are the types to revoke, in order (``token_type_hint`` values). ``token_param`` is
    the member that holds the token; ``None`` where it goes only into the ``Authorization`` header.
    ``sends_hint`` adds ``token_type_hint``. With GET and DELETE in ``form`` the parameters stand in
    the query, as some providers demand. ``on_reconnect`` tells whether a grant that a new one
    replaces is revoked: not at providers where that would end the new one too.
    """

    method: str = "POST"
    format: RequestFormat = RequestFormat.FORM
    authentication: RevocationAuthentication = RevocationAuthentication.CLIENT
    token_param: str | None = "token"
    sends_hint: bool = True
    tokens: tuple[str, ...] = ("refresh_token", "access_token")
    params: Mapping[str, str] = field(default_factory=dict)
    on_reconnect: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Everything the daemon knows of one provider entry of the configuration.

    ``rate`` is in token requests a second, fleet-wide and sustained; ``concurrency`` in refreshes
    in flight in this process; ``default_lifetime`` holds where a reply has no usable
    ``expires_in``; ``requires_iss`` tells that the server's metadata promises ``iss`` in every
    authorization response (RFC 9207 3); ``token_response`` maps an RFC 6749 5.1 member name to the
    selector that finds it in this provider's replies. ``tokens_never_expire`` says that an access
    token without ``expires_in`` is good until it is revoked (``default_lifetime: never``).
    ``allowed_hosts`` are exact names or addresses, or begin with one ``*.``, in lower case, with a
    port where that is not the scheme's own. Empty where the provider has no API configured, and
    where the host of ``api_base_url`` is known only with a connection's values: then that host,
    rendered, is the one that is allowed. ``reply_names`` are the names (``token.instance_url``,
    ``me.id``, …) whose values are kept with a connection, because a template of ``api_base_url``,
    ``test`` or ``request`` needs them later.
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
    tokens_never_expire: bool = False
    rotation: Rotation = Rotation()
    fields: Mapping[str, Field] = field(default_factory=dict)
    api_base_url: Template | None = None
    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: bool = False
    test: TestRequest | None = None
    label: Template | None = None
    label_mask: bool = False
    account_id: ParsedResult | None = None
    request: RequestValues = RequestValues()
    revocation_request: RevocationRequest = RevocationRequest()
    reply_names: frozenset[str] = frozenset()
    concurrency: int = 8
    rate: float = 10.0


def provider_for(provider: Provider, values: Mapping[str, str]) -> Provider:
    """Return ``provider`` with a connection's field values in its issuer and endpoints.

    ``values`` are by field name. A provider without ``{field}`` in these is returned as it is.

    Raises:
        TemplateError: a field that a URL needs has no value, or one that may not stand there.
    """
    endpoints = provider.endpoints
    urls = [provider.issuer, *(getattr(endpoints, each.name) for each in fields(endpoints))]
    if not any(url and "{" in url for url in urls):
        return provider
    names = {f"fields.{name}": value for name, value in values.items()}
    issuer, *rest = [_rendered(url, names) for url in urls]
    named = dict(zip((each.name for each in fields(endpoints)), rest, strict=True))
    return replace(provider, issuer=issuer, endpoints=Endpoints(**named))


def _rendered(url: str | None, names: Mapping[str, str]) -> str | None:
    if url is None or "{" not in url:
        return url
    return render_url(parse_url_template(url), names)


def account_scope(provider: Provider, values: Mapping[str, str]) -> str:
    """Return what sets apart accounts of one id: the endpoint of the tenant they live at.

    Account 1 of ``us.acme.example`` is another one than account 1 of ``eu.acme.example``. Empty
    where the provider's URLs are the same for all.
    """
    if "{" not in (provider.endpoints.token or provider.issuer or ""):
        return ""
    try:
        tenant = provider_for(provider, values)
    except TemplateError:
        return ""
    return tenant.endpoints.token or tenant.issuer or ""
