"""Sends refresh requests: the refresher's view of the token endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from daemon.catalog.discovery import Discovery
from daemon.domain.errors import DiscoveryError
from daemon.domain.outcome import FailureReason, Outcome, OutcomeKind
from daemon.domain.provider import Provider, provider_for
from daemon.domain.templates import TemplateError
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
        fields: Mapping[str, str],
        hard_timeout: float,
        send_by: float,
        received: Received,
    ) -> Outcome:
        """Send one refresh request; see the port. Cancelled, the request's fate is unknown."""
        try:
            tenant = provider_for(provider, fields)
            url = await self._discovery.refresh_endpoint(tenant)
        except TemplateError as error:
            # This connection's own trouble: no reason to doubt the provider or the grant.
            return Outcome(
                kind=OutcomeKind.NOT_SENT,
                reason=FailureReason.OTHER,
                error="field_missing",
                description=(
                    f"Nothing was sent, because the URL of provider {provider.name} cannot be made "
                    f"for this connection: {error}. Set the field with PATCH, or connect again."
                ),
            )
        except DiscoveryError as error:
            return Outcome(
                kind=OutcomeKind.NOT_SENT,
                reason=FailureReason.NETWORK,
                description=str(error),
            )
        with self._in_flight(provider.name):
            return await self._token_endpoint.request(
                tenant,
                url,
                Refresh(refresh_token=refresh_token),
                hard_timeout=hard_timeout,
                send_by=send_by,
                received=received,
            )
