"""Joins the refresh protocol's parts: store, journal, sender, cache, sweep, notifications."""

from __future__ import annotations

from collections.abc import Callable

from daemon.catalog.discovery import Discovery
from daemon.domain.claimable import Wanted
from daemon.domain.role import Role
from daemon.oauth.outbound import Outbound
from daemon.oauth.token_endpoint import TokenEndpoint
from daemon.persistence.asks import PostgresAsks
from daemon.persistence.journal import Journal
from daemon.persistence.notifications import Notifications, Notifier
from daemon.refresh.asking import Asking, AskingPorts
from daemon.refresh.attempts import Ports
from daemon.refresh.cache import TokenCache
from daemon.refresh.follower import Follower
from daemon.refresh.reading import TokenReader
from daemon.refresh.refresher import Refresher
from daemon.refresh.scheduler import Scheduler, Sweep
from daemon.refresh.sending import RefreshRequests
from daemon.refresh.slots import Slots
from daemon.wiring.configuration import Configuration
from daemon.wiring.parts import Storage, Telemetry, World


class Refreshing:
    """The refresh protocol, its cache, and what keeps both true."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        storage: Storage,
        outbound: Outbound,
        journal: Journal,
        telemetry: Telemetry,
        world: World,
        on_disowned: Callable[[], None],
        on_news: Callable[[], None],
        role: Role = Role.ALL,
    ) -> None:
        """``on_disowned`` hears of tokens queued for revocation, ``on_news`` of any change."""
        self._on_news = on_news
        self._role = role
        self._configuration = configuration
        # Without a journal nothing is claimed: the name only tells own notifications from others'.
        self.owner = journal.owner or f"serve-{world.entropy(9).hex()}"
        self.journal = journal
        clock, entropy = world.clock, world.entropy
        self.cache = TokenCache()
        self.notifier = Notifier(storage.database, clock=clock, entropy=entropy)
        self.discovery = Discovery(session=outbound, clock=clock)
        self.token_endpoint = TokenEndpoint(session=outbound, clock=clock, tracer=telemetry.tracer)
        self.slots = Slots(
            total=lambda: configuration.settings.refresh.concurrency,
            at_provider=configuration.concurrency_of,
            providers=lambda: len(configuration.settings.providers),
        )
        self.refresher = Refresher(
            Ports(
                store=storage.refreshes,
                tokens=storage.connections,
                providers=configuration,
                sender=RefreshRequests(
                    self.token_endpoint,
                    self.discovery,
                    in_flight=telemetry.metrics.refresh_in_flight,
                ),
                journal=journal,
                publisher=self,
                events=telemetry.events,
                clock=clock,
                chance=world.chance,
                on_disowned=on_disowned,
                late=storage.refreshes,
                tracer=telemetry.tracer,
            ),
            cache=self.cache,
            slots=self.slots,
            settings=lambda: configuration.settings.refresh,
            owner=self.owner,
            on_schedule=self._expect,
        )
        self.scheduler = Scheduler(
            Sweep(
                store=storage.refreshes,
                publisher=self,
                clock=clock,
                chance=world.chance,
                owner=self.owner,
            ),
            refresher=self.refresher,
            slots=self.slots,
            providers=configuration.providers,
        )
        self.follower = Follower(
            self.cache,
            storage.connections,
            clock=clock,
            listening=lambda: self.notifications.up,
        )
        self.notifications = Notifications(
            storage.database,
            clock=clock,
            entropy=entropy,
            on_state=lambda up: telemetry.metrics.set_notification_listener_up(is_up=up),
            on_listening=self.follower.doubt_everything,
        )
        self.notifications.subscribe(self._hear)
        self.asking = Asking(
            AskingPorts(
                store=PostgresAsks(storage.database),
                tell=self._ask,
                clock=clock,
                settings=lambda: configuration.settings.refresh,
            ),
            cache=self.cache,
            memory=self.refresher.memory,
        )
        self.reader = TokenReader(
            self.cache,
            self.refresher if role.refreshes else self.asking,
            configuration,
            clock=clock,
            settings=lambda: configuration.settings.refresh,
        )

    def publish(self, connection_id: str) -> None:
        """Tell the other replicas that a connection changed."""
        self.notifier.publish(f"{self.owner} {connection_id}")
        self._on_news()

    def _ask(self, wanted: Wanted) -> None:
        """Let those that refresh hear of what a caller here waits for."""
        words = (self.owner, wanted.connection_id, str(wanted.generation), wanted.provider)
        self.notifier.publish(" ".join(words))

    def _expect(self, seconds: float) -> None:
        self.scheduler.expect(seconds)

    def _hear(self, item: str) -> None:
        owner, *words = item.split(" ")
        match words:
            case [connection_id] if owner != self.owner:
                self.follower.hear(connection_id)
                self._on_news()
            case [connection_id, generation, provider] if self._role.refreshes:
                self._asked(connection_id, generation, provider)

    def _asked(self, connection_id: str, generation: str, provider: str) -> None:
        """Refresh what a caller of a process that only serves waits for."""
        known = self._configuration.get(provider)
        if known is None or not generation.isdecimal():
            return
        self.refresher.asked(
            Wanted(
                connection_id=connection_id,
                provider=provider,
                generation=int(generation),
                rate=known.rate,
            )
        )
