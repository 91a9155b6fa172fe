"""[authorize] A person is sent to the provider (RFC 6749 4.1.1, RFC 7636).

A ticket lets one browser start; starting draws a state and a verifier that no two transactions
share, pins where the code may go, and keeps only hashes of what comes back through the browser.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from daemon.domain.authorization import AuthorizationStore, PendingAuthorization, Ticket
from daemon.domain.clock import Clock, Entropy
from daemon.domain.connection import Connection
from daemon.domain.errors import DiscoveryError, FieldError, Problem
from daemon.domain.provider import Provider, provider_for
from daemon.domain.templates import TemplateError
from daemon.oauth.query import with_query

TICKET_LIFETIME = timedelta(minutes=30)
# RFC 6749 leaves it open; ten minutes is also the longest life of a code (4.1.2).
STATE_LIFETIME = timedelta(minutes=10)
# 256 bits: RFC 6749 10.10 asks for 128, RFC 7636 4.1 recommends 32 octets for the verifier.
_SECRET_BYTES = 32
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class ProviderResolver(Protocol):
    """Fills in what a provider's metadata says (RFC 8414, OpenID Connect Discovery)."""

    async def resolve(self, provider: Provider) -> Provider:
        """Return ``provider`` with its endpoints. Raises DiscoveryError."""


def new_secret(entropy: Entropy) -> str:
    """Return 32 fresh random bytes as 43 base64url characters: a ticket, state or verifier."""
    return _base64url(entropy(_SECRET_BYTES))


def is_secret(text: str) -> bool:
    """Tell whether ``text`` has the form of :func:`new_secret`: else nobody need be asked."""
    return _SECRET.fullmatch(text) is not None


def fingerprint(secret: str) -> bytes:
    """Return the SHA-256 under which a secret is stored; it has 256 random bits, so no salt."""
    return hashlib.sha256(secret.encode()).digest()


def code_challenge(code_verifier: str) -> str:
    """Return the S256 challenge of RFC 7636 4.2; ``plain`` is never used."""
    return _base64url(hashlib.sha256(code_verifier.encode("ascii")).digest())


def tenant_of(provider: Provider, fields: Mapping[str, str]) -> Provider:
    """Return ``provider`` with a connection's fields in its URLs (``provider_for``).

    Raises:
        FieldError: one is missing or cannot stand where it is wanted; the text names it.
    """
    try:
        return provider_for(provider, fields)
    except TemplateError as error:
        raise FieldError(f"A URL of provider {provider.name} needs it: {error}.") from error


def authorization_url(
    provider: Provider,
    endpoint: str,
    *,
    redirect_uri: str,
    state: str,
    scopes: Sequence[str],
    code_verifier: str | None,
) -> str:
    """Return where to send the browser (RFC 6749 4.1.1).

    ``authorization_params`` add to the request and never replace what this daemon relies on.
    """
    params = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
    }
    if scopes:
        params["scope"] = provider.scope_separator.join(scopes)
    if code_verifier is not None:
        params["code_challenge"] = code_challenge(code_verifier)
        params["code_challenge_method"] = "S256"
    extra = {
        name: value for name, value in provider.authorization_params.items() if name not in params
    }
    return with_query(endpoint, params | extra)


class Authorizer:
    """Makes tickets and starts transactions."""

    def __init__(
        self,
        *,
        store: AuthorizationStore,
        resolver: ProviderResolver,
        public_url: str,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._public_url = public_url.rstrip("/")
        self._clock = clock
        self._entropy = entropy

    async def issue_ticket(
        self, connection: Connection, *, caller: str, return_url: str | None
    ) -> tuple[Ticket, str]:
        """Store a new ticket for ``connection``; return it with its connect URL, which is a secret.

        ``return_url`` must have been matched against ``return_urls``.

        Raises:
            DatabaseUnavailableError: it may or may not be stored.
            Problem: 404, the connection was removed meanwhile.
        """
        ticket, connect_url = self.new_ticket(connection.id, caller=caller, return_url=return_url)
        if not await self._store.add_ticket(ticket):
            raise Problem(
                404, "unknown_connection", "The connection was removed.", connection=connection.id
            )
        return ticket, connect_url

    def new_ticket(
        self, connection_id: str, *, caller: str, return_url: str | None
    ) -> tuple[Ticket, str]:
        """Return a ticket that is not stored yet, and its connect URL, which is a secret."""
        secret = new_secret(self._entropy)
        ticket = Ticket(
            ticket_hash=fingerprint(secret),
            connection_id=connection_id,
            caller=caller,
            return_url=return_url,
            expires_at=self._clock.now() + TICKET_LIFETIME,
        )
        return ticket, f"{self._public_url}/connect/{secret}"

    async def begin(
        self,
        ticket: Ticket,
        connection: Connection,
        provider: Provider,
        browser_binding: str,
        *,
        fields: Mapping[str, str],
    ) -> str | None:
        """Start a transaction and return the URL to send the browser to.

        ``None`` where ``ticket`` is gone by now: a disconnect takes it away. The URL holds the
        state: it goes to the browser and nowhere else. ``fields`` become the connection's if the
        authorization succeeds. Raises DiscoveryError where configuration and metadata do not tell
        where to go (FieldError where a field does not), and DatabaseUnavailableError.
        """
        resolved = await self._resolver.resolve(tenant_of(provider, fields))
        endpoints = resolved.endpoints
        if endpoints.authorization is None or endpoints.token is None:
            raise DiscoveryError(
                f"Neither the configuration nor the metadata of provider {provider.name} name both"
                " an authorization and a token endpoint. Configure them."
            )
        state = new_secret(self._entropy)
        verifier = new_secret(self._entropy) if resolved.pkce else None
        authorization = PendingAuthorization(
            state_hash=fingerprint(state),
            connection_id=connection.id,
            provider=resolved.name,
            issuer=resolved.issuer,
            token_endpoint=endpoints.token,
            redirect_uri=f"{self._public_url}/callback",
            code_verifier=verifier,
            browser_hash=fingerprint(browser_binding),
            scopes=connection.requested_scopes or resolved.scopes,
            return_url=ticket.return_url,
            fields=dict(fields),
            caller=ticket.caller,
            expires_at=self._clock.now() + STATE_LIFETIME,
        )
        if not await self._store.begin(authorization, ticket_hash=ticket.ticket_hash):
            return None
        return authorization_url(
            resolved,
            endpoints.authorization,
            redirect_uri=authorization.redirect_uri,
            state=state,
            scopes=authorization.scopes,
            code_verifier=verifier,
        )


def _base64url(octets: bytes) -> str:
    """Encode without padding (RFC 7636 appendix A)."""
    return urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")
