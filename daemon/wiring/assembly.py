"""Builds the parts and joins them. No part starts anything here; ``starting`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from daemon.config.settings import Caller, Settings
from daemon.domain.connection import Connection
from daemon.domain.journal import JournaledReply
from daemon.domain.provider import Provider
from daemon.domain.role import Role
from daemon.domain.tokens import TokenSet, current_of
from daemon.oauth.api_session import ApiSession
from daemon.oauth.authorization import Authorizer
from daemon.oauth.authorization_errors import AuthorizationFailures
from daemon.oauth.completing import Completing, Learning
from daemon.oauth.identifying import Identifying, KeptGrants
from daemon.oauth.outbound import Outbound
from daemon.oauth.redirection import Redirection
from daemon.persistence.journal import Journal
from daemon.persistence.keyring import open_keyring
from daemon.refresh import policy
from daemon.refresh.memory import Memory
from daemon.refresh.recovery import Recovery
from daemon.refresh.replaying import Stored
from daemon.sidecar.access import Callers
from daemon.sidecar.listener import Listener
from daemon.sidecar.ops import create_ops_app
from daemon.sidecar.service_accounts import ServiceAccounts
from daemon.upkeep.sink_notices import Notices
from daemon.upkeep.sinks import SinkParts, Sinks
from daemon.wiring.caller_keys import CallerKeys
from daemon.wiring.configuration import Configuration
from daemon.wiring.health import DaemonHealth
from daemon.wiring.housekeeping import Housekeeping
from daemon.wiring.keys import Keys
from daemon.wiring.listeners import ApiWiring, public_listener
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.refreshing import Refreshing
from daemon.wiring.tasks import Uncut
from daemon.wiring.upkeep import Upkeep


class Daemon:
    """All parts, joined."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        callers: Callers,
        service_accounts: ServiceAccounts,
        outbound: Outbound,
        apis: ApiSession,
        storage: Storage,
        journal: Journal,
        pending: Sequence[JournaledReply],
        telemetry: Telemetry,
        world: World,
        role: Role,
        stop: Callable[[], None],
    ) -> None:
        """``stop`` asks for what SIGTERM asks for."""
        self.role = role
        self.configuration = configuration
        self.callers = callers
        self.service_accounts = service_accounts
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
            on_disowned=self._wake_revoking,
            on_news=self._told,
            role=role,
        )
        self.upkeep = Upkeep(
            configuration,
            storage=storage,
            refreshing=self.refreshing,
            outbound=outbound,
            apis=apis,
            telemetry=telemetry,
            world=world,
            uncut=self.uncut,
        )
        self._identifying = Identifying(
            examiner=self.upkeep.examiner,
            may_merge=callers.may_see,
            clock=world.clock,
            chance=world.chance,
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
                on_disowned=self._wake_revoking,
                on_gone=self._gone,
                late=storage.refreshes,
                history=journal,
                incarnations=storage.incarnations,
                identities=KeptGrants(
                    self._identifying,
                    connections=storage.connections,
                    resolver=self.refreshing.discovery,
                    clock=world.clock,
                ),
                all_providers=configuration.providers,
                named=storage.owner_name.held,
            ),
            pending=pending,
            refresher=self.refreshing.refresher,
            settings=lambda: configuration.settings.refresh,
            owner=journal.owner,
        )
        self.sinks = self._sinks()
        self.health = DaemonHealth(
            cached=lambda: len(self.refreshing.cache),
            database=lambda: storage.database.reason,
            serves=role.serves,
            keys=lambda: self.keys.trouble,
        )
        self.keys = self._keys(journal)
        self.caller_keys = CallerKeys(
            configured=lambda: self.settings.callers, apply=self._admit, clock=world.clock
        )
        self.housekeeping = Housekeeping(
            connections=storage.connections,
            refreshes=storage.refreshes,
            retention=storage.retention,
            incarnations=storage.incarnations,
            tests=self.upkeep.tests,
            keep_events=lambda: self.settings.events.retention,
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
        self._failures = AuthorizationFailures(
            events=telemetry.events,
            clock=world.clock,
            entropy=world.entropy,
            record=self.upkeep.record,
        )
        self.api = ApiWiring(
            configuration,
            callers=callers,
            storage=storage,
            refreshing=self.refreshing,
            upkeep=self.upkeep,
            apis=apis,
            authorizer=self._authorizer,
            telemetry=telemetry,
            world=world,
            plan=self.plan,
            role=role,
            stop=stop,
        ).listener()
        self.public = public_listener(
            configuration,
            storage=storage,
            authorizer=self._authorizer,
            redirection=self._redirection(),
            failures=self._failures,
            world=world,
        )
        self.ops = Listener(
            create_ops_app(registry=telemetry.registry, health=self.health, entropy=world.entropy),
            name="ops",
            entropy=world.entropy,
        )

    def _keys(self, journal: Journal) -> Keys:
        world, storage = self.world, self.storage
        return Keys(
            storage.agreement,
            cipher=storage.cipher,
            database=storage.database,
            journal=journal,
            clock=world.clock,
            open_keyring=lambda keys: open_keyring(
                keys, state_dir=self.settings.state_dir, entropy=world.entropy
            ),
            on_missing=self._keys_missing,
        )

    def _admit(self, callers: Sequence[Caller]) -> None:
        """Let these callers ask and no others, and let streams begin again with their keys."""
        self.callers.replace(callers, allowed_uids=self.settings.listen.api.allowed_uids)
        self.upkeep.feed.end_all()

    def _keys_missing(self, trouble: str | None, now: int, soon: int) -> None:
        """Refresh nothing where others encrypt with keys that are not at hand."""
        self.storage.incarnations.refuse(trouble)
        self.telemetry.metrics.set_encryption_keys_missing(now=now, soon=soon)

    def _sinks(self) -> Sinks:
        cache, world = self.refreshing.cache, self.world
        return Sinks(
            SinkParts(
                sinks=lambda: self.settings.sinks,
                cache=cache,
                memory=Memory(cache, self.storage.connections),
                notices=Notices(clock=world.clock),
                events=self.telemetry.sinks,
                clock=world.clock,
                entropy=world.entropy,
            )
        )

    @property
    def settings(self) -> Settings:
        """Return the settings in force."""
        return self.configuration.settings

    def plan(self, tokens: TokenSet, connection_id: str) -> datetime | None:
        """Return when tokens are due for a refresh."""
        return policy.due_at(tokens, connection_id, self.settings.refresh)

    def _redirection(self) -> Redirection:
        world, refreshing = self.world, self.refreshing
        return Redirection(
            store=self.storage.authorizations,
            connections=self.storage.connections,
            providers=self.configuration.get,
            resolver=refreshing.discovery,
            token_endpoint=refreshing.token_endpoint,
            completing=Completing(
                store=self.storage.authorizations,
                identifying=self._identifying,
                learning=Learning(
                    plan=self._plan_first,
                    authorized=self._authorized,
                    gone=self._gone,
                    revoke=self._wake_revoking,
                    default_lifetime=lambda: self.settings.refresh.default_lifetime,
                ),
                events=self.telemetry.events,
                clock=world.clock,
            ),
            journal=refreshing.journal,
            failures=self._failures,
            clock=world.clock,
            spawn=self.uncut,
            store_later=self.recovery.store_later,
            tracer=self.telemetry.tracer,
        )

    def _wake_revoking(self) -> None:
        self.upkeep.revoking.wake()

    def _told(self) -> None:
        self.upkeep.told()

    def _gone(self, connection_id: str) -> None:
        """Forget a connection that gave way to another, here and elsewhere."""
        self.refreshing.cache.drop(connection_id)
        self.refreshing.publish(connection_id)

    def _plan_first(
        self, tokens: TokenSet, provider: Provider, connection_id: str
    ) -> datetime | None:
        del provider
        return self.plan(tokens, connection_id)

    def _authorized(self, connection: Connection, tokens: TokenSet) -> None:
        """Let this process and the others know of a new grant."""
        token = current_of(
            tokens,
            connection=connection.id,
            provider=connection.provider,
            status=connection.status,
        )
        # The store may have kept a refresh token that this grant came without.
        self.refreshing.cache.put(replace(token, refreshable=connection.has_refresh_token))
        self.refreshing.publish(connection.id)
        if connection.refresh_at is not None:
            seconds = (connection.refresh_at - self.world.clock.now()).total_seconds()
            self.refreshing.scheduler.expect(seconds)
