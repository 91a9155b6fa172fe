"""Builds the parts and joins them. No part starts anything here; ``lifecycle`` does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from daemon.config.settings import Settings
from daemon.domain.connection import Connection
from daemon.domain.journal import JournaledReply
from daemon.domain.provider import Provider
from daemon.domain.tokens import TokenSet, current_of
from daemon.oauth.authorization import Authorizer
from daemon.oauth.authorization_errors import AuthorizationFailures
from daemon.oauth.outbound import Outbound
from daemon.oauth.redirection import Learning, Redirection
from daemon.persistence.journal import Journal
from daemon.refresh import policy
from daemon.refresh.recovery import Recovery, Stored
from daemon.sidecar.access import Callers
from daemon.sidecar.api import ApiParts, create_api_app
from daemon.sidecar.guard import Guard
from daemon.sidecar.listener import Listener
from daemon.sidecar.ops import create_ops_app
from daemon.sidecar.protocol import Limits
from daemon.sidecar.public import PublicParts, create_public_app
from daemon.sidecar.token_route import TokenRoute
from daemon.wiring.configuration import Configuration
from daemon.wiring.health import DaemonHealth
from daemon.wiring.housekeeping import Housekeeping
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.refreshing import Refreshing
from daemon.wiring.tasks import Uncut

# A callback's query may be 8 KiB; a longer one is still answered by a page.
_CALLBACK_LINE = 16 * 1024


class Daemon:
    """All parts, joined."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        callers: Callers,
        outbound: Outbound,
        storage: Storage,
        journal: Journal,
        pending: Sequence[JournaledReply],
        telemetry: Telemetry,
        world: World,
    ) -> None:
        self.configuration = configuration
        self.callers = callers
        self.storage = storage
        self.telemetry = telemetry
        self.uncut = Uncut()
        self.world = world
        self.refreshing = Refreshing(
            configuration,
            storage=storage,
            outbound=outbound,
            journal=journal,
            telemetry=telemetry,
            world=world,
        )
        self.recovery = Recovery(
            Stored(
                journal=journal,
                store=storage.refreshes,
                exchanged=storage.authorizations,
                providers=configuration,
                on_authorized=self._authorized,
                clock=world.clock,
                chance=world.chance,
            ),
            pending=pending,
            refresher=self.refreshing.refresher,
            settings=lambda: configuration.settings.refresh,
            owner=journal.owner,
        )
        self.health = DaemonHealth(
            cached=lambda: len(self.refreshing.cache), database=lambda: storage.database.reason
        )
        self.housekeeping = Housekeeping(
            connections=storage.connections,
            refreshes=storage.refreshes,
            authorizations=storage.authorizations,
            discovery=self.refreshing.discovery,
            cache=self.refreshing.cache,
            journal=journal,
            metrics=telemetry.metrics,
            clock=world.clock,
        )
        self._authorizer = Authorizer(
            store=storage.authorizations,
            resolver=self.refreshing.discovery,
            public_url=self.settings.public_url,
            clock=world.clock,
            entropy=world.entropy,
        )
        self.api = self._api_listener()
        self.public = self._public_listener()
        self.ops = Listener(
            create_ops_app(registry=telemetry.registry, health=self.health, entropy=world.entropy),
            name="ops",
            entropy=world.entropy,
        )

    @property
    def settings(self) -> Settings:
        """Return the settings in force."""
        return self.configuration.settings

    def plan(self, tokens: TokenSet, connection_id: str) -> datetime | None:
        """Return when tokens are due for a refresh."""
        return policy.due_at(tokens, connection_id, self.settings.refresh)

    def _api_listener(self) -> Listener:
        refreshing, world = self.refreshing, self.world
        guard = Guard()
        route = TokenRoute(
            callers=self.callers,
            guard=guard,
            cache=refreshing.cache,
            reader=refreshing.reader,
            reads=self.telemetry.reads,
            clock=world.clock,
        )
        parts = ApiParts(
            settings=lambda: self.settings,
            callers=self.callers,
            guard=guard,
            token_route=route,
            connections=self.storage.connections,
            reader=refreshing.reader,
            authorizer=self._authorizer,
            events=self.telemetry.events,
            clock=world.clock,
            entropy=world.entropy,
            plan=self.plan,
            expect=refreshing.scheduler.expect,
        )
        return Listener(
            create_api_app(parts),
            name="api",
            entropy=world.entropy,
            before_router=route.before_router,
        )

    def _public_listener(self) -> Listener:
        world, refreshing = self.world, self.refreshing
        failures = AuthorizationFailures(events=self.telemetry.events, entropy=world.entropy)
        redirection = Redirection(
            store=self.storage.authorizations,
            providers=self.configuration.get,
            resolver=refreshing.discovery,
            token_endpoint=refreshing.token_endpoint,
            learning=Learning(
                plan=self._plan_first,
                authorized=self._authorized,
                default_lifetime=lambda: self.settings.refresh.default_lifetime,
            ),
            journal=refreshing.journal,
            failures=failures,
            events=self.telemetry.events,
            clock=world.clock,
            spawn=self.uncut,
        )
        parts = PublicParts(
            public_url=self.settings.public_url,
            store=self.storage.authorizations,
            authorizer=self._authorizer,
            redirection=redirection,
            failures=failures,
            providers=self.configuration.get,
            return_urls=lambda: self.settings.return_urls,
            clock=world.clock,
            entropy=world.entropy,
        )
        return Listener(
            create_public_app(parts),
            name="public",
            entropy=world.entropy,
            limits=Limits(line_size=_CALLBACK_LINE),
        )

    def _plan_first(
        self, tokens: TokenSet, provider: Provider, connection_id: str
    ) -> datetime | None:
        del provider
        return self.plan(tokens, connection_id)

    def _authorized(self, connection: Connection, tokens: TokenSet) -> None:
        """Let this process and the others know of a new grant."""
        self.refreshing.cache.put(
            current_of(
                tokens,
                connection=connection.id,
                provider=connection.provider,
                status=connection.status,
            )
        )
        self.refreshing.publish(connection.id)
        due_at = self.plan(tokens, connection.id)
        if due_at is not None:
            seconds = (due_at - self.world.clock.now()).total_seconds()
            self.refreshing.scheduler.expect(seconds)
