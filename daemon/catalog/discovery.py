"""A provider's published metadata (RFC 8414, OpenID Connect Discovery 1.0).

The one hard idea: metadata tells where secrets are sent, so a document counts whole or not at
all, and a later one never moves an endpoint to another host by itself. What was read once stays
good while the server is away: an outage of the metadata never stops a refresh.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from daemon.domain.clock import Clock
from daemon.domain.errors import DiscoveryError
from daemon.domain.provider import Provider
from daemon.domain.reply import NoReply, RawReply

_OAUTH = "/.well-known/oauth-authorization-server"
_OPENID = "/.well-known/openid-configuration"
_FETCH_TIMEOUT = 10.0
# Long enough that a crowd of callers does not hammer a dead server, short enough that somebody
# who mends it does not wait.
_FAILURE_COUNTS_FOR = 10.0


class MetadataSession(Protocol):
    """What fetches documents from strangers. ``daemon.oauth.outbound.Outbound`` is the one."""

    async def get(
        self, url: str, headers: Mapping[str, str], *, hard_timeout: float
    ) -> RawReply | NoReply:
        """Fetch once, following no redirect; never raises for what a server or network does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What a provider says of itself; ``None`` where it does not say."""

    issuer: str
    token_endpoint: str
    authorization_endpoint: str | None = None
    iss_parameter_supported: bool = False
    code_challenge_methods: tuple[str, ...] | None = None
    token_endpoint_auth_methods: tuple[str, ...] | None = None


def metadata_urls(issuer: str) -> tuple[str, ...]:
    """Return where ``issuer`` may publish its metadata, in the order to try.

    RFC 8414 3.1 puts the well-known part before the issuer's path, OpenID Connect Discovery 4
    behind it, and RFC 8414 5 lets the OpenID name stand in either place.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    paths = dict.fromkeys((_OAUTH + path, path + _OPENID, _OPENID + path))
    return tuple(urlunsplit((parts.scheme, parts.netloc, path, "", "")) for path in paths)


def read_metadata(issuer: str, document: bytes) -> Metadata:
    """Return the metadata of ``issuer``. Raises DiscoveryError, and then nothing of it counts.

    The document's issuer must equal ``issuer`` byte for byte (RFC 8414 3.3), and each endpoint in
    it must be a URL to which a secret may be sent.
    """
    try:
        members = json.loads(document.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DiscoveryError("it is not JSON") from error
    if not isinstance(members, dict):
        raise DiscoveryError("it is not a JSON object")
    if members.get("issuer") != issuer:
        raise DiscoveryError(
            "its issuer is not the configured one; they must be equal to the last character"
        )
    token = _endpoint(members, "token_endpoint")
    if token is None:
        raise DiscoveryError("it names no token_endpoint")
    return Metadata(
        issuer=issuer,
        token_endpoint=token,
        authorization_endpoint=_endpoint(members, "authorization_endpoint"),
        iss_parameter_supported=_flag(members, "authorization_response_iss_parameter_supported"),
        code_challenge_methods=_names(members, "code_challenge_methods_supported"),
        token_endpoint_auth_methods=_names(members, "token_endpoint_auth_methods_supported"),
    )


def is_safe_endpoint(url: str) -> bool:
    """Tell whether a secret may be sent to ``url``: https, or http to a loopback host.

    No user info, no fragment (RFC 6749 3.2), no white space or other character outside printable
    ASCII.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or "#" in url:
        return False
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


class Discovery:
    """Finds endpoints and remembers them, one document per issuer."""

    def __init__(self, *, session: MetadataSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._known: dict[str, Metadata] = {}
        self._failures: dict[str, tuple[float, DiscoveryError]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def resolve(self, provider: Provider) -> Provider:
        """Return ``provider`` with the endpoints that its configuration leaves open filled in.

        What is configured wins, and where nothing is open nobody is asked. Callers who come
        meanwhile wait for the one fetch. Raises DiscoveryError.
        """
        endpoints = provider.endpoints
        if endpoints.authorization is not None and endpoints.token is not None:
            return self._with_known(provider)
        if provider.issuer is None:
            raise DiscoveryError(
                f"Provider {provider.name} has neither an issuer nor both authorization_endpoint "
                "and token_endpoint. Configure them."
            )
        resolved = _filled(provider, await self._metadata(provider.name, provider.issuer))
        if resolved.endpoints.authorization is None:
            raise DiscoveryError(
                f"The metadata of provider {provider.name} names no authorization_endpoint. "
                "Configure it."
            )
        return resolved

    async def refresh_endpoint(self, provider: Provider) -> str:
        """Return where refresh tokens of ``provider`` go; asks nobody where that is configured.

        Raises DiscoveryError.
        """
        configured = provider.endpoints.refresh or provider.endpoints.token
        if configured is not None:
            return configured
        if provider.issuer is None:
            raise DiscoveryError(
                f"Provider {provider.name} has neither an issuer nor a token_endpoint. Configure "
                "one of them."
            )
        return (await self._metadata(provider.name, provider.issuer)).token_endpoint

    async def refresh(self) -> Mapping[str, DiscoveryError]:
        """Fetch again all that is known; return, by issuer, what did not work.

        Where it did not work, and where an endpoint would move to another host, the last good
        document stays in force (the new host is taken after a restart: that is the approval).
        """
        problems: dict[str, DiscoveryError] = {}
        for issuer, known in tuple(self._known.items()):
            try:
                fetched = await self._fetch(issuer)
            except DiscoveryError as error:
                problems[issuer] = error
                continue
            if _hosts(fetched) == _hosts(known):
                self._known[issuer] = fetched
            else:
                problems[issuer] = DiscoveryError(
                    f"The metadata of {issuer} now names endpoints on another host. The old ones "
                    "stay in use; restart the daemon if the change is genuine."
                )
        return problems

    def _with_known(self, provider: Provider) -> Provider:
        known = None if provider.issuer is None else self._known.get(provider.issuer)
        return provider if known is None else _filled(provider, known)

    async def _metadata(self, name: str, issuer: str) -> Metadata:
        async with self._locks.setdefault(issuer, asyncio.Lock()):
            known = self._known.get(issuer)
            if known is not None:
                return known
            until, failure = self._failures.get(issuer, (0.0, None))
            if failure is not None and self._clock.boottime() < until:
                raise DiscoveryError(str(failure)) from failure
            try:
                self._known[issuer] = await self._fetch(issuer)
            except DiscoveryError as error:
                failure = DiscoveryError(f"Provider {name}: {error}")
                self._failures[issuer] = (self._clock.boottime() + _FAILURE_COUNTS_FOR, failure)
                raise failure from error
            self._failures.pop(issuer, None)
            return self._known[issuer]

    async def _fetch(self, issuer: str) -> Metadata:
        findings: list[str] = []
        for url in metadata_urls(issuer):
            headers = {"Accept": "application/json"}
            reply = await self._session.get(url, headers, hard_timeout=_FETCH_TIMEOUT)
            if isinstance(reply, NoReply):
                findings.append(f"{url}: no reply ({reply.fault})")
                # The others are on the same host.
                break
            try:
                return _read(issuer, reply)
            except DiscoveryError as error:
                findings.append(f"{url}: {error}")
        raise DiscoveryError(
            f"No metadata of {issuer} can be used. Check the issuer, or configure "
            f"authorization_endpoint and token_endpoint. {'; '.join(findings)}."
        )


def _read(issuer: str, reply: RawReply) -> Metadata:
    if reply.status != HTTPStatus.OK:
        raise DiscoveryError(f"status {reply.status}")
    return read_metadata(issuer, reply.body)


def _filled(provider: Provider, metadata: Metadata) -> Provider:
    endpoints = replace(
        provider.endpoints,
        authorization=provider.endpoints.authorization or metadata.authorization_endpoint,
        token=provider.endpoints.token or metadata.token_endpoint,
    )
    return replace(
        provider,
        endpoints=endpoints,
        requires_iss=provider.requires_iss or metadata.iss_parameter_supported,
    )


def _hosts(metadata: Metadata) -> tuple[str | None, ...]:
    endpoints = (metadata.authorization_endpoint, metadata.token_endpoint)
    return tuple(None if url is None else urlsplit(url).netloc for url in endpoints)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _endpoint(members: Mapping[str, object], name: str) -> str | None:
    url = members.get(name)
    if url is None:
        return None
    if not isinstance(url, str) or not is_safe_endpoint(url):
        raise DiscoveryError(f"its {name} is not an https URL")
    return url


def _flag(members: Mapping[str, object], name: str) -> bool:
    value = members.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise DiscoveryError(f"its {name} is not a boolean")
    return value


def _names(members: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    values = members.get(name)
    if values is None:
        return None
    names = (
        [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    )
    if not isinstance(values, list) or len(names) != len(values):
        raise DiscoveryError(f"its {name} is not a list of strings")
    return tuple(names)
