"""[discover] Endpoints from providers' metadata, found once and remembered.

The one hard idea: a later document never moves an endpoint to another host by itself, and what
was read once stays good while the server is away: an outage of the metadata never stops a refresh.
A provider whose issuer holds a ``{field}`` comes here as ``provider_for`` made it: one document per
tenant.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Protocol
from urllib.parse import urlsplit

from daemon.catalog.metadata import Metadata, metadata_urls, read_metadata
from daemon.domain.clock import Clock
from daemon.domain.errors import DiscoveryError
from daemon.domain.provider import Provider
from daemon.domain.reply import NoReply, RawReply

_FETCH_TIMEOUT = 10.0
# Long enough that a crowd of callers does not hammer a dead server, short enough that somebody
# who mends it does not wait.
_FAILURE_COUNTS_FOR = 10.0
# Documents remembered. A tenant more costs one fetch at its next refresh, not an error.
_REMEMBERED = 500


class MetadataSession(Protocol):
    """What fetches documents from strangers. ``daemon.oauth.outbound.Outbound`` is the one."""

    async def get(
        self, url: str, headers: Mapping[str, str], *, hard_timeout: float
    ) -> RawReply | NoReply:
        """Fetch once, following no redirect; never raises for what a server or network does."""


@dataclass(slots=True)
class _Turn:
    """Who fetches an issuer's document. ``users`` hold or wait for ``lock``."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Discovery:
    """Finds endpoints and remembers them, one document per issuer, those used last."""

    def __init__(self, *, session: MetadataSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._known: OrderedDict[str, Metadata] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, DiscoveryError]] = OrderedDict()
        self._turns: dict[str, _Turn] = {}

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

    async def revocation_endpoint(self, provider: Provider) -> str | None:
        """Return where tokens of ``provider`` are revoked; ``None`` where it has no such place.

        Asks nobody where that is configured. Raises DiscoveryError where it cannot be found out.
        """
        if provider.endpoints.revocation is not None or provider.issuer is None:
            return provider.endpoints.revocation
        return (await self._metadata(provider.name, provider.issuer)).revocation_endpoint

    async def refresh(self) -> Mapping[str, DiscoveryError]:
        """Fetch again all that is known; return, by issuer, what did not work.

        Where it did not work, and where an endpoint would move to another host or vanish, the
        last good document stays in force (the change is taken after a restart: that is the
        approval).
        """
        problems: dict[str, DiscoveryError] = {}
        for issuer, known in tuple(self._known.items()):
            try:
                fetched = await self._fetch(issuer)
            except DiscoveryError as error:
                problems[issuer] = error
                continue
            if not _moves(known, fetched):
                self._remember(issuer, fetched)
            else:
                problems[issuer] = DiscoveryError(
                    f"The metadata of {issuer} now names endpoints on another host, or not all of "
                    "those it did. The old ones stay in use; restart the daemon if the change is "
                    "genuine."
                )
        return problems

    def _with_known(self, provider: Provider) -> Provider:
        known = None if provider.issuer is None else self._recall(provider.issuer)
        return provider if known is None else _filled(provider, known)

    async def _metadata(self, name: str, issuer: str) -> Metadata:
        if "{" in issuer:
            raise DiscoveryError(
                f"Provider {name}: the issuer holds a {{field}}, so its metadata is known only for "
                "a connection that has a value for it."
            )
        async with self._turn(issuer):
            known = self._recall(issuer)
            if known is not None:
                return known
            until, failure = self._failures.get(issuer, (0.0, None))
            if failure is not None and self._clock.boottime() < until:
                raise DiscoveryError(str(failure)) from failure
            try:
                fetched = await self._fetch(issuer)
            except DiscoveryError as error:
                failure = DiscoveryError(f"Provider {name}: {error}")
                self._remember_failure(issuer, failure)
                raise failure from error
            self._failures.pop(issuer, None)
            self._remember(issuer, fetched)
            return fetched

    @asynccontextmanager
    async def _turn(self, issuer: str) -> AsyncIterator[None]:
        """Let one in at a time for each issuer, and remember only those somebody waits for."""
        turn = self._turns.setdefault(issuer, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[issuer]

    def _recall(self, issuer: str) -> Metadata | None:
        known = self._known.get(issuer)
        if known is not None:
            self._known.move_to_end(issuer)
        return known

    def _remember(self, issuer: str, metadata: Metadata) -> None:
        self._known[issuer] = metadata
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _remember_failure(self, issuer: str, failure: DiscoveryError) -> None:
        self._failures[issuer] = (self._clock.boottime() + _FAILURE_COUNTS_FOR, failure)
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)

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
        revocation=provider.endpoints.revocation or metadata.revocation_endpoint,
        introspection=provider.endpoints.introspection or metadata.introspection_endpoint,
    )
    return replace(
        provider,
        endpoints=endpoints,
        requires_iss=provider.requires_iss or metadata.iss_parameter_supported,
    )


def _moves(known: Metadata, fetched: Metadata) -> bool:
    """Tell whether an endpoint is at another host than before, or gone.

    One that is new may be at any host that the others were at.
    """
    before = _hosts(known)
    return any(
        new != old and not (old is None and new in before)
        for old, new in zip(before, _hosts(fetched), strict=True)
    )


def _hosts(metadata: Metadata) -> tuple[str | None, ...]:
    endpoints = (
        metadata.authorization_endpoint,
        metadata.token_endpoint,
        metadata.revocation_endpoint,
        metadata.introspection_endpoint,
    )
    return tuple(None if url is None else urlsplit(url).netloc for url in endpoints)
