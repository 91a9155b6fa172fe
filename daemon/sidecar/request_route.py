"""[serve] ``GET /v1/connections/{id}/request?url=URL``: how an authenticated request looks.

For callers who send it themselves. What ``/proxy`` would add is in the answer, token included.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from daemon.config.settings import Permission
from daemon.domain.allowed_hosts import HostNotAllowedError, Target, target
from daemon.domain.errors import Problem
from daemon.domain.provider import Provider
from daemon.refresh.ports import Providers
from daemon.refresh.reading import Reading, TokenReader
from daemon.sidecar.access import Callers, Identity
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.guard import Guard, connection_id_from
from daemon.sidecar.proxy_target import host_not_allowed
from daemon.sidecar.request_values import Credential, added, query_without, refuse_token_parameter
from daemon.sidecar.routing import Survivor, gone, json_response
from daemon.sidecar.token_route import identify, outcome_of
from daemon.telemetry.token_reads import UNKNOWN_PROVIDER, TokenReads


class RequestRoute:
    """Answers how a request to an API looks."""

    def __init__(
        self,
        *,
        callers: Callers,
        guard: Guard,
        reader: TokenReader,
        providers: Providers,
        values: ConnectionValues,
        reads: TokenReads,
        survivor_of: Survivor,
    ) -> None:
        self._callers = callers
        self._guard = guard
        self._reader = reader
        self._providers = providers
        self._values = values
        self._reads = reads
        self._survivor_of = survivor_of

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer with ``{url, headers, query, body}``; counted as a token read."""
        connection_id = connection_id_from(request.match_info["id"])
        provider_name = UNKNOWN_PROVIDER
        try:
            identity = await identify(
                request, Permission.TOKEN, connection_id, callers=self._callers, guard=self._guard
            )
            url = _read_url(request)
            reading = await self._reading(connection_id, identity)
            provider_name = reading.entry.provider
            body = await self._body(reading, url)
        except Problem as problem:
            self._reads.count(provider_name, outcome_of(problem))
            raise
        self._reads.count(provider_name, reading.outcome)
        reading.entry.used = True
        return json_response(body)

    async def _reading(self, connection_id: str, identity: Identity) -> Reading:
        reading = await self._reader.read(connection_id)
        if reading is None:
            raise await gone(connection_id, identity, self._survivor_of)
        return reading

    async def _body(self, reading: Reading, url: str) -> Mapping[str, object]:
        entry = reading.entry
        provider = self._providers.get(entry.provider)
        if provider is None:
            raise provider_not_configured(entry.provider, entry.connection)
        values = await self._values.of(entry, provider)
        place = _target(url, provider, values)
        path, _, query = place.path.partition("?")
        refuse_token_parameter(query, where="URL's query")
        extra = added(provider, values, Credential(*entry.token()))
        # What is in query is not in the URL as well: whoever adds the one to the other, as HTTP
        # libraries do, would send it twice.
        kept = query_without(query, extra.query)
        return {
            "url": f"{place.origin}{path}{'?' if kept else ''}{kept}",
            "headers": dict(extra.headers),
            "query": dict(extra.query),
            "body": dict(extra.body),
        }


def provider_not_configured(provider: str, connection_id: str) -> Problem:
    """Return the answer for a connection whose provider left the configuration."""
    return Problem(
        409,
        "provider_not_configured",
        f"The provider {provider} is not in the configuration any more. Configure it again and "
        "reload.",
        connection=connection_id,
    )


def _read_url(request: web.Request) -> str:
    urls = request.query.getall("url", [])
    if len(urls) != 1 or len(request.query) != 1:
        raise Problem(
            400,
            "bad_request",
            "The parameter of this route is url, once: the full URL that is to be called, "
            "percent-encoded as one value.",
        )
    return urls[0]


def _target(url: str, provider: Provider, values: Mapping[str, str]) -> Target:
    try:
        return target(url, provider, values)
    except HostNotAllowedError as error:
        raise host_not_allowed(str(error)) from error
