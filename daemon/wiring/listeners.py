"""Joins the three listeners with the parts that they serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from aiohttp import web

from daemon.config.settings import Settings
from daemon.domain.role import Role
from daemon.domain.tokens import TokenSet
from daemon.oauth.api_session import ApiSession
from daemon.oauth.authorization import Authorizer
from daemon.oauth.authorization_errors import AuthorizationFailures
from daemon.oauth.redirection import Redirection
from daemon.sidecar.access import Callers
from daemon.sidecar.api import ApiParts, create_api_app
from daemon.sidecar.connection_routes import ConnectionParts, ConnectionRoutes
from daemon.sidecar.connection_values import ConnectionValues
from daemon.sidecar.creation import Creation, CreationParts
from daemon.sidecar.drop_in import DropIn, DropInParts
from daemon.sidecar.event_routes import EventParts, EventRoutes
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.openapi import OpenApiRoute
from daemon.sidecar.operator.parts import OperatorParts
from daemon.sidecar.operator.routes import add_operator_routes
from daemon.sidecar.provider_routes import ProviderRoutes
from daemon.sidecar.proxy import ProxyPorts, ProxyRoute
from daemon.sidecar.public import PublicParts, create_public_app
from daemon.sidecar.quitting import Quitting
from daemon.sidecar.request_route import RequestRoute
from daemon.sidecar.room import Limits
from daemon.sidecar.routing import Finder
from daemon.sidecar.serving_only import only_reading, page_routes
from daemon.sidecar.token_route import TokenRoute
from daemon.wiring.configuration import Configuration
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.refreshing import Refreshing
from daemon.wiring.upkeep import Upkeep

# A callback's query may be 8 KiB; a longer one is still answered by a page.
_CALLBACK_LINE = 16 * 1024


class ApiWiring:
    """Builds the api listener: token reads and the proxy before the router, all else behind it."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        callers: Callers,
        storage: Storage,
        refreshing: Refreshing,
        upkeep: Upkeep,
        apis: ApiSession,
        authorizer: Authorizer,
        telemetry: Telemetry,
        world: World,
        plan: Callable[[TokenSet, str], datetime | None],
        role: Role,
        stop: Callable[[], None],
    ) -> None:
        self._configuration = configuration
        self._callers = callers
        self._guard = Guard()
        self._storage = storage
        self._refreshing = refreshing
        self._upkeep = upkeep
        self._apis = apis
        self._authorizer = authorizer
        self._telemetry = telemetry
        self._world = world
        self._plan = plan
        self._role = role
        self._stop = stop
        self._values = ConnectionValues(storage.connections, clock=world.clock)
        self._finder = Finder(connections=storage.connections, settings=self._settings)

    def listener(self) -> Listener:
        """Return the listener, not started."""
        token, proxy = self._token_route(), self._proxy()
        creation = self._creation()
        app = create_api_app(
            ApiParts(
                callers=self._callers,
                guard=self._guard,
                entropy=self._world.entropy,
                token=token,
                drop_in=self._drop_in(),
                creation=creation,
                connections=self._managing(),
                providers=ProviderRoutes(self._settings),
                openapi=OpenApiRoute(),
                routes=[*self._events(), *self._quitting().routes()],
                open_routes=self._open_routes(),
            )
        )
        if self._role.refreshes:
            add_operator_routes(app, self._operator(creation))
        else:
            app.middlewares.append(only_reading())

        def before_router(
            request: web.BaseRequest,
        ) -> web.StreamResponse | Awaitable[web.StreamResponse] | None:
            response = token.before_router(request)
            return proxy.before_router(request) if response is None else response

        return Listener(app, name="api", entropy=self._world.entropy, before_router=before_router)

    def _open_routes(self) -> list[web.RouteDef]:
        request = web.get("/v1/connections/{id}/request", self._request_route().get)
        return [request, *([] if self._role.refreshes else page_routes(self._guard))]

    def _quitting(self) -> Quitting:
        return Quitting(
            is_allowed=lambda: self._settings().listen.api.quitquitquit, stop=self._stop
        )

    def _settings(self) -> Settings:
        return self._configuration.settings

    def _used_lately(self, connection_id: str) -> bool:
        entry = self._refreshing.cache.get(connection_id)
        return entry is not None and entry.used

    def _token_route(self) -> TokenRoute:
        return TokenRoute(
            callers=self._callers,
            guard=self._guard,
            cache=self._refreshing.cache,
            reader=self._refreshing.reader,
            reads=self._telemetry.reads,
            survivor_of=self._storage.connections.survivor_of,
            clock=self._world.clock,
            tracer=self._telemetry.tracer,
        )

    def _proxy(self) -> ProxyRoute:
        return ProxyRoute(
            ProxyPorts(
                callers=self._callers,
                guard=self._guard,
                cache=self._refreshing.cache,
                reader=self._refreshing.reader,
                providers=self._configuration,
                values=self._values,
                survivor_of=self._storage.connections.survivor_of,
                session=self._apis,
                count=self._telemetry.metrics.count_proxy_request,
                clock=self._world.clock,
                entropy=self._world.entropy,
                tracer=self._telemetry.tracer,
            )
        )

    def _request_route(self) -> RequestRoute:
        return RequestRoute(
            callers=self._callers,
            guard=self._guard,
            reader=self._refreshing.reader,
            providers=self._configuration,
            values=self._values,
            reads=self._telemetry.reads,
            survivor_of=self._storage.connections.survivor_of,
        )

    def _drop_in(self) -> DropIn:
        return DropIn(
            DropInParts(
                callers=self._callers,
                guard=self._guard,
                reader=self._refreshing.reader,
                reads=self._telemetry.reads,
                survivor_of=self._storage.connections.survivor_of,
                clock=self._world.clock,
                entropy=self._world.entropy,
            )
        )

    def _creation(self) -> Creation:
        return Creation(
            CreationParts(
                settings=self._settings,
                connections=self._storage.connections,
                authorizer=self._authorizer,
                events=self._telemetry.events,
                clock=self._world.clock,
                entropy=self._world.entropy,
                plan=self._plan,
                expect=self._refreshing.scheduler.expect,
                examine=self._upkeep.examine,
            )
        )

    def _managing(self) -> ConnectionRoutes:
        return ConnectionRoutes(
            ConnectionParts(
                settings=self._settings,
                connections=self._storage.connections,
                finder=self._finder,
                reader=self._refreshing.reader,
                authorizer=self._authorizer,
                tests=self._upkeep.tests,
                disconnecting=self._upkeep.disconnecting,
                changed=self._upkeep.changed,
                used_lately=self._used_lately,
                clock=self._world.clock,
            )
        )

    def _events(self) -> list[web.RouteDef]:
        parts = EventParts(
            finder=self._finder,
            pages=self._storage.history,
            feed=self._upkeep.feed,
            clock=self._world.clock,
        )
        return EventRoutes(parts).routes()

    def _operator(self, creation: Creation) -> OperatorParts:
        return OperatorParts(
            settings=self._settings,
            callers=self._callers,
            guard=self._guard,
            connections=self._storage.connections,
            history=self._storage.history,
            tests=self._upkeep.tests,
            reader=self._refreshing.reader,
            disconnecting=self._upkeep.disconnecting,
            authorizer=self._authorizer,
            create=creation.for_person,
            clock=self._world.clock,
            entropy=self._world.entropy,
        )


def public_listener(
    configuration: Configuration,
    *,
    storage: Storage,
    authorizer: Authorizer,
    redirection: Redirection,
    failures: AuthorizationFailures,
    world: World,
) -> Listener:
    """Return the public listener, not started."""
    parts = PublicParts(
        public_url=configuration.settings.public_url,
        store=storage.authorizations,
        authorizer=authorizer,
        redirection=redirection,
        failures=failures,
        providers=configuration.get,
        return_urls=lambda: configuration.settings.return_urls,
        clock=world.clock,
        entropy=world.entropy,
    )
    return Listener(
        create_public_app(parts),
        name="public",
        entropy=world.entropy,
        limits=Limits(line_size=_CALLBACK_LINE),
    )
