"""Provider entries: our client registrations at authorization servers, checked one against another.

What the protocol itself sets cannot be set again by a parameter map or an endpoint's query.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from enum import StrEnum
from typing import TypeVar

from pydantic import SecretStr

from daemon.config import references
from daemon.config.account import with_account
from daemon.config.fields import fields, with_hosts
from daemon.config.names import FOR_ENDPOINT, Names
from daemon.config.parameters import (
    IMPLICIT,
    PASSWORD,
    PROTOCOL_PARAMETERS,
    parameters,
    selectors,
)
from daemon.config.reading import OpenSection, Reading
from daemon.config.resource import with_resource
from daemon.config.revocation import revocation_request
from daemon.config.rotation import rotation
from daemon.config.schema import PROVIDER
from daemon.config.trail import Trail
from daemon.config.urls import endpoint, issuer, query_names
from daemon.config.values import (
    InvalidValueError,
    one_of,
    positive_duration,
    rate,
    text,
    whole_number,
)
from daemon.config.vocabulary import NOT_SUPPORTED
from daemon.domain.provider import (
    ClientAuthentication,
    Endpoints,
    Grant,
    Provider,
    RequestFormat,
)
from daemon.domain.templates import parse_template

E = TypeVar("E", bound=StrEnum)

HIGHEST_CONCURRENCY = 10_000

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # scope-token of RFC 6749 3.3
_SEPARATOR = re.compile(r"[ ,;+|:/.]{1,3}")
_NEVER = "never"
_LATER_GRANTS = frozenset({"client_credentials", "device_code", "jwt_bearer", "token_exchange"})
_LATER_AUTHENTICATION = frozenset({"private_key_jwt", "client_secret_jwt", "tls_client_auth"})


def providers(reading: Reading, trail: Trail, value: object) -> dict[str, Provider]:
    """Return the providers by name; two registrations that a callback confuses are a finding."""
    found: dict[str, Provider] = {}
    registrations: dict[tuple[str, str], str] = {}
    for place, name, entry in reading.members(trail, value):
        if not _NAME.fullmatch(name):
            message = (
                "a provider's name must be 1 to 63 lower-case letters, digits, - or _, and begin "
                "with a letter or digit"
            )
            reading.find(place, message)
        provider = _provider(OpenSection(reading, place, entry, PROVIDER), name)
        found[name] = provider
        if provider.issuer is None or not provider.client_id:
            continue
        first = registrations.setdefault((provider.issuer, provider.client_id), name)
        if first != name:
            message = (
                f"is the issuer of providers.{first}, with the same client_id: a callback could "
                "not be told apart (RFC 9207); keep one entry, and give scopes by connection"
            )
            reading.find((*place, "issuer"), message)
    return found


def _provider(section: OpenSection, name: str) -> Provider:
    reading = section.reading
    names = Names(
        reading=reading,
        fields=fields(reading, section.at("fields"), section.raw("fields")),
        has_test=section.raw("test") is not None,
    )
    provider = with_resource(section, _registration(section, name), names)
    provider = with_account(section, provider, names)
    provider = replace(
        provider,
        issuer=_url(section, names, "issuer", issuer),
        endpoints=_endpoints(section, names),
        revocation_request=revocation_request(section),
    )
    _check_endpoints(section)
    _check_authentication(section, provider)
    marked = with_hosts(reading, section.at("fields"), names.fields, names.in_hosts)
    return replace(provider, fields=marked, reply_names=frozenset(names.kept))


def _registration(section: OpenSection, name: str) -> Provider:
    """Return what is configured of the client registration, without any URL."""
    default = Provider(name=name, client_id="")
    separator = section.get("scope_separator", _scope_separator, default.scope_separator)
    never = section.raw("default_lifetime") == _NEVER
    return Provider(
        name=name,
        client_id=section.required(
            "client_id", text, "is missing; it is on the provider's page for your application"
        )
        or "",
        client_secrets=_client_secrets(section),
        grant=section.get("grant", _grant, default.grant),
        token_endpoint_auth_method=section.get(
            "token_endpoint_auth_method", _authentication, default.token_endpoint_auth_method
        ),
        scopes=_scopes(section, separator),
        scope_separator=separator,
        pkce=section.get("pkce", _pkce, default.pkce),
        authorization_params=parameters(section, "authorization_params"),
        token_params=parameters(section, "token_params"),
        refresh_params=parameters(section, "refresh_params"),
        token_request_format=section.get(
            "token_request_format", one_of(RequestFormat), default.token_request_format
        ),
        token_response=selectors(section),
        default_lifetime=None if never else section.optional("default_lifetime", _lifetime),
        tokens_never_expire=never,
        rotation=rotation(section),
        concurrency=section.get(
            "concurrency", whole_number(1, HIGHEST_CONCURRENCY), default.concurrency
        ),
        rate=section.get("rate", rate, default.rate),
    )


def _endpoints(section: OpenSection, names: Names) -> Endpoints:
    return Endpoints(
        authorization=_url(section, names, "authorization_endpoint", _endpoint),
        token=_url(section, names, "token_endpoint", _endpoint),
        refresh=_url(section, names, "refresh_endpoint", _endpoint),
        revocation=_url(section, names, "revocation_endpoint", _endpoint),
        introspection=_url(section, names, "introspection_endpoint", _endpoint),
    )


def _url(
    section: OpenSection, names: Names, key: str, reader: Callable[[object], str]
) -> str | None:
    """Return the URL under ``key``, which may hold ``{field}``."""
    url = section.optional(key, reader)
    if url is not None:
        names.check_url(section.at(key), parse_template(url), FOR_ENDPOINT)
    return url


def _check_endpoints(section: OpenSection) -> None:
    both = ("authorization_endpoint", "token_endpoint")
    missing = [key for key in both if section.raw(key) is None]
    if section.raw("issuer") is None and missing:
        message = (
            f"needs issuer (discovery then finds the endpoints), or {' and '.join(both)}; "
            f"{' and '.join(missing)} missing"
        )
        section.reading.find(section.trail, message)


def _check_authentication(section: OpenSection, provider: Provider) -> None:
    reading, public = section.reading, ClientAuthentication.NONE
    given = section.raw("client_secret") is not None
    method = provider.token_endpoint_auth_method
    if method is public and given:
        message = (
            f"is not used with token_endpoint_auth_method: {public}; remove one of the two keys"
        )
        reading.find(section.at("client_secret"), message)
    # A method that is itself a finding says nothing about the secret.
    readable = method.value == section.raw("token_endpoint_auth_method") or (
        "token_endpoint_auth_method" not in section
    )
    if method is not public and readable and not given and reading.role.refreshes:
        message = (
            "is missing; write {file: PATH} or {env: NAME}, or token_endpoint_auth_method: "
            f"{public} for a public client"
        )
        reading.find(section.at("client_secret"), message)
    if method is public and not provider.pkce:
        message = "is off for a public client, whose codes nothing else protects (RFC 9700 2.1.1)"
        reading.warn(section.at("pkce"), message)


def _client_secrets(section: OpenSection) -> tuple[SecretStr, ...]:
    reading, trail = section.reading, section.at("client_secret")
    value = section.raw("client_secret")
    if value is None:
        return ()
    if not reading.role.refreshes:
        references.mention(reading, value)
        return ()
    if not isinstance(value, list | tuple):
        entries: list[tuple[Trail, object]] = [(trail, value)]
    else:
        entries = list(reading.entries(trail, value))
        if not entries:
            reading.find(trail, "is an empty list; write {file: PATH} or {env: NAME}")
    found = (references.secret(reading, place, entry) for place, entry in entries)
    return tuple(SecretStr(secret) for secret in found if secret is not None)


def _grant(value: object) -> Grant:
    if value in ("implicit", "token"):
        raise InvalidValueError(IMPLICIT)
    if value == "password":
        raise InvalidValueError(PASSWORD)
    return _supported(Grant, value, later=_LATER_GRANTS)


def _authentication(value: object) -> ClientAuthentication:
    return _supported(ClientAuthentication, value, later=_LATER_AUTHENTICATION)


def _supported(kind: type[E], value: object, *, later: frozenset[str]) -> E:
    if isinstance(value, str) and value in later:
        raise InvalidValueError(f"this value {NOT_SUPPORTED}, or use {' or '.join(kind)}")
    return one_of(kind)(value)


def _endpoint(value: object) -> str:
    url = endpoint(value)
    if query_names(url) & PROTOCOL_PARAMETERS:
        raise InvalidValueError(
            "must not set a parameter of the protocol (client_id, state, …) in its query"
        )
    return url


def _lifetime(value: object) -> timedelta:
    try:
        return positive_duration(value)
    except InvalidValueError as error:
        raise InvalidValueError(f"{error}; or {_NEVER}, where tokens do not expire") from None


def _scope_separator(value: object) -> str:
    if not isinstance(value, str) or not _SEPARATOR.fullmatch(value):
        raise InvalidValueError('must be a separator in quotes, such as " " or ","')
    return value


def _scopes(section: OpenSection, separator: str) -> tuple[str, ...]:
    def scope(value: object) -> str:
        word = text(value)
        if not _SCOPE.fullmatch(word) or separator in word:
            raise InvalidValueError(
                "must be one scope, without spaces, quotes or the scope_separator; write a list"
            )
        return word

    value = section.raw("scopes")
    if not isinstance(value, str):
        return section.each("scopes", scope)
    read = (section.reading.read(section.at("scopes"), word, scope) for word in value.split())
    return tuple(dict.fromkeys(word for word in read if word is not None))


def _pkce(value: object) -> bool:
    if value is False or value == "off":
        return False
    if value == "S256":
        return True
    raise InvalidValueError("must be S256 or off")
