"""Sends refresh requests: the refresher's view of the token endpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from daemon.catalog.discovery import Discovery
from daemon.domain.errors import DiscoveryError
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider
from daemon.oauth.token_endpoint import Received, TokenEndpoint
from daemon.oauth.token_request import Refresh


class RefreshRequests:
    """Finds where a provider's refresh tokens go and sends them there (port: RefreshSender)."""

    def __init__(
        self,
        token_endpoint: TokenEndpoint,
        discovery: Discovery,
        *,
        in_flight: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._token_endpoint = token_endpoint
        self._discovery = discovery
        self._in_flight = in_flight

    async def refresh(
        self,
        provider: Provider,
        refresh_token: str,
        *,
        hard_timeout: float,
        send_by: float,
        received: Received,
    ) -> Outcome:
        """Send one refresh request; see the port. Cancelled, the request's fate is unknown."""
        try:
            url = await self._discovery.refresh_endpoint(provider)
        except DiscoveryError as error:
            return Outcome(
                kind=OutcomeKind.NOT_SENT,
                reason=FailureReason.NETWORK,
                description=str(error),
            )
        with self._in_flight(provider.name):
            return await self._token_endpoint.request(
                provider,
                url,
                Refresh(refresh_token=refresh_token),
                hard_timeout=hard_timeout,
                send_by=send_by,
                received=received,
            )
