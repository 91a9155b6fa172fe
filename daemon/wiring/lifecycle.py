"""Start, run, stop: the order of things, and what each signal does.

Start: the database, the keys, the probes, the cache, then the listeners. Stop: nothing new
begins, what is in flight ends and is stored, the listeners close, the database goes last.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from pydantic import SecretStr

from daemon import __version__
from daemon.config.settings import Settings
from daemon.domain.errors import DatabaseUnavailableError
from daemon.domain.role import Role
from daemon.oauth.api_session import ApiSession
from daemon.oauth.outbound import Outbound
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.embedded.server import EmbeddedPostgres
from daemon.persistence.journal import Journal
from daemon.persistence.keyring import Keyring, open_keyring
from daemon.sidecar.access import Callers, named_ids
from daemon.sidecar.kubernetes_api import KubernetesApi
from daemon.sidecar.service_accounts import ServiceAccounts
from daemon.telemetry.logs import LogPipeline
from daemon.telemetry.tracing import open_tracing
from daemon.wiring.assembly import Daemon
from daemon.wiring.configuration import Configuration
from daemon.wiring.hardening import open_state_dir
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.reloading import Reloading, callers_of, warn
from daemon.wiring.service_manager import NO_SUPERVISION, ServiceManager, Supervision

log = structlog.get_logger()

# Kubernetes' terminationGracePeriodSeconds should be 120: the hard end of a request and the time to
# store its reply, then the listeners' own grace for open requests, and the rest of the stop.
_GRACE = 70.0
# Three listeners of 4,096 connections each, and what refreshing needs.
_OPEN_FILES = 16_384
# Entries read into memory at the start: all of a sidecar's, and quick for a large database.
_WARM = 10_000
# How long a start waits for its first gauges, in seconds.
_FIRST_COUNT = 0.5
# How long a start waits for the files of sinks, in seconds: a disk that hangs is not waited for.
_FIRST_FILES = 5.0
# Everybody waits while the garbage collector looks at what is new: some 30 ms beside thousands of
# slow sockets. At this number it does so a few times a minute; garbage in circles is some MB then.
_YOUNG_OBJECTS = 50_000

# How long the start waits for the journal's replies to be stored. It goes on in the background.
_RECOVERY = 10.0

OnStarted = Callable[[Daemon], Awaitable[None]]


@dataclass(slots=True)
class _Grace:
    """The time that stopping may take, counted once however often it is tried."""

    ends_at: float | None = None

    def timeout(self) -> asyncio.Timeout:
        """Return what ends at the end of the grace, which begins with the first call."""
        if self.ends_at is None:
            self.ends_at = asyncio.get_running_loop().time() + _GRACE
        return asyncio.timeout_at(self.ends_at)


async def serve(
    settings: Settings,
    *,
    world: World,
    logs: LogPipeline,
    load: Callable[[], Settings] | None = None,
    on_started: OnStarted | None = None,
    told: Supervision = NO_SUPERVISION,
    role: Role = Role.ALL,
) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration again by ``load``.

    A database that is away is waited for; ``on_started`` is awaited once the first full start is
    done. ``told`` is what the service manager has passed, ``role`` what this process is for.

    Raises:
        ConfigurationError: an address cannot be listened at, a key file cannot be used.
        StorageError: the schema is newer, a key is wrong or missing, PostgreSQL cannot run.
        ExceptionGroup: a background task died; its cause is inside.
    """
    stop = asyncio.Event()
    manager = ServiceManager(told, clock=world.clock)
    inherited = manager.socket_at(settings.listen.api.unix_socket)
    _allow_many_files()
    if role.refreshes or not settings.callers:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if found := open_state_dir(settings.state_dir):
        log.warning("configuration_warning", path="state_dir", detail=found)
    async with AsyncExitStack() as stack:
        background: dict[str, Callable[[], Awaitable[None]]] = {}
        url = settings.database_url
        if url is None:
            url = await _embedded(settings, world, stack, background)
        daemon = await _build(settings, url, world, stack, role=role, stop=stop.set)
        daemon.telemetry.metrics.watch_log(lambda: logs.dropped)
        stack.enter_context(_signals(stop, Reloading(daemon, manager, logs=logs, load=load)))
        grace = _Grace()
        await _open(daemon, stack, grace, inherited)
        background |= _background(daemon, manager)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_owned(work), name=n) for n, work in background.items()]
            starting = _finish_start(daemon, manager, on_started)
            tasks.append(group.create_task(starting, name="start"))
            await stop.wait()
            log.info("stopping")
            manager.stopping()
            await _drain(daemon, grace)
            for task in tasks:
                task.cancel()
    log.info("stopped")


def _allow_many_files() -> None:
    """Raise the soft limit of open files: listeners alone may hold some thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _embedded(
    settings: Settings,
    world: World,
    stack: AsyncExitStack,
    background: dict[str, Callable[[], Awaitable[None]]],
) -> SecretStr:
    postgres = EmbeddedPostgres(settings.state_dir, entropy=world.entropy, clock=world.clock)
    url = await postgres.start()
    stack.push_async_callback(postgres.stop)
    background["embedded postgres"] = postgres.watch
    return SecretStr(url)


async def _build(
    settings: Settings,
    url: SecretStr,
    world: World,
    stack: AsyncExitStack,
    *,
    role: Role,
    stop: Callable[[], None],
) -> Daemon:
    keyring = _keyring(settings, world)
    configuration = Configuration(settings)
    telemetry = _telemetry(configuration, world, stack, role)
    cipher = TokenCipher(keyring.keys, entropy=world.entropy)
    journal = Journal(settings.state_dir, cipher, clock=world.clock, entropy=world.entropy)
    stack.push_async_callback(journal.close)
    # A process that only serves sends nothing, and so has no reply to keep.
    pending = journal.open() if role.refreshes else []
    storage = Storage(
        url,
        keyring,
        configuration,
        cipher=cipher,
        owner=journal.owner,
        world=world,
        metrics=telemetry.metrics,
        role=role,
        journal_keys=lambda: journal.keys.ids,
    )
    telemetry.metrics.watch_journal(lambda: len(journal))
    service_accounts = await stack.enter_async_context(
        ServiceAccounts(
            lambda: configuration.settings.kubernetes, cluster=KubernetesApi(), clock=world.clock
        )
    )
    return Daemon(
        configuration,
        callers=Callers(
            callers_of(settings, world.entropy),
            allowed_uids=settings.listen.api.allowed_uids,
            tokens=service_accounts,
        ),
        service_accounts=service_accounts,
        outbound=await stack.enter_async_context(Outbound()),
        apis=await stack.enter_async_context(ApiSession()),
        storage=storage,
        journal=journal,
        pending=pending,
        telemetry=telemetry,
        world=world,
        role=role,
        stop=stop,
    )


def _keyring(settings: Settings, world: World) -> Keyring:
    keyring = open_keyring(
        settings.encryption_keys, state_dir=settings.state_dir, entropy=world.entropy
    )
    warn(settings.warnings)
    if keyring.warning:
        log.warning("configuration_warning", path="encryption.keys", detail=keyring.warning)
    return keyring


def _telemetry(
    configuration: Configuration, world: World, stack: AsyncExitStack, role: Role
) -> Telemetry:
    tracing = open_tracing(
        is_enabled=configuration.settings.tracing.enabled, version=__version__, clock=world.clock
    )
    stack.push_async_callback(tracing.close)
    return Telemetry(configuration, world, role=role, tracer=tracing.tracer)


async def _open(
    daemon: Daemon, stack: AsyncExitStack, grace: _Grace, inherited: socket.socket | None
) -> None:
    """Open everything in order; the stack closes it in reverse."""
    listen, refreshing = daemon.settings.listen, daemon.refreshing
    await daemon.ops.start(address=listen.ops.address)
    stack.push_async_callback(daemon.ops.stop)
    stack.push_async_callback(daemon.storage.database.close)
    await daemon.storage.database.start()
    stack.push_async_callback(daemon.storage.owner_name.close)
    stack.push_async_callback(refreshing.notifications.close)
    await refreshing.notifications.start()
    stack.push_async_callback(refreshing.notifier.close)
    await refreshing.notifier.start()
    if daemon.storage.database.connected:
        if daemon.role.refreshes:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RECOVERY):
                    await daemon.recovery.run()
        await _warm(daemon)
    # After the listeners: a callback that came while all else was drained ends, too.
    stack.push_async_callback(_end_exchanges, daemon, grace)
    stack.push_async_callback(daemon.api.stop)
    await daemon.api.start(
        address=listen.api.address,
        unix_socket=listen.api.unix_socket,
        allowed_uids=listen.api.allowed_uids,
        inherited=inherited,
    )
    if daemon.role.refreshes:
        stack.push_async_callback(daemon.public.stop)
        await daemon.public.start(address=listen.public.address)
    daemon.housekeeping.start(only_use=not daemon.role.refreshes)
    stack.callback(daemon.housekeeping.stop)
    # First of all when it comes to stopping, also after a failure.
    stack.push_async_callback(_drain, daemon, grace)


def _background(
    daemon: Daemon, manager: ServiceManager
) -> dict[str, Callable[[], Awaitable[None]]]:
    refreshing = daemon.refreshing
    return {
        "database": daemon.storage.database.wait_closed,
        "notifications": refreshing.notifications.wait_closed,
        "notifier": refreshing.notifier.wait_closed,
        "follower": refreshing.follower.run,
        "feed": daemon.upkeep.feed.run,
        "sinks": daemon.sinks.run,
        "keys": daemon.keys.run,
        "caller keys": daemon.caller_keys.run,
        "service accounts": daemon.service_accounts.run,
        "service manager": partial(manager.run, daemon.health, refreshing.cache),
        **(_background_of_refreshing(daemon) if daemon.role.refreshes else {}),
    }


def _background_of_refreshing(daemon: Daemon) -> dict[str, Callable[[], Awaitable[None]]]:
    """Return what asks providers or keeps house, which a process that only serves never does."""
    return {
        "scheduler": partial(_recover_then_refresh, daemon),
        "recovery": daemon.recovery.watch,
        "owner name": daemon.storage.owner_name.run,
        "revoking": daemon.upkeep.revoking.run,
        "webhooks": daemon.upkeep.webhooks.run,
    }


async def _recover_then_refresh(daemon: Daemon) -> None:
    """Store what the journal kept, as soon as the database is there; only then refresh."""
    await daemon.recovery.run()
    await daemon.refreshing.scheduler.run()


async def _owned(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _finish_start(
    daemon: Daemon, manager: ServiceManager, on_started: OnStarted | None
) -> None:
    """Wait for the database, then declare the start done."""
    while True:
        await daemon.storage.database.wait_connected()
        try:
            if len(daemon.refreshing.cache) == 0:
                await _warm(daemon)
            if daemon.role.refreshes:
                await _look_at_all(daemon)
            break
        except DatabaseUnavailableError:
            await asyncio.sleep(1)
    # An application that is started once this is ready finds its file.
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_FILES):
            await daemon.sinks.first_look()
    # What the start has built lives as long as the process: no need to look at it again.
    gc.collect()
    gc.freeze()
    # A refresh makes some thousand short-lived objects: looked at every 700, most are in use.
    gc.set_threshold(_YOUNG_OBJECTS)
    daemon.refreshing.scheduler.wake()
    daemon.health.has_started()
    manager.started()
    log.info("started", providers=len(daemon.settings.providers), role=daemon.role.value)
    if on_started is not None:
        await on_started(daemon)


async def _look_at_all(daemon: Daemon) -> None:
    await daemon.storage.refreshes.add_providers(list(daemon.settings.providers))
    # What a scrape shows first; a large database is counted after the start.
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_COUNT):
            await daemon.housekeeping.set_gauges()


async def _warm(daemon: Daemon) -> None:
    """Read tokens before somebody asks: for a process that only serves, those named for it.

    A thousand of them would sort all connections a thousand times.
    """
    connections, put = daemon.storage.connections, daemon.refreshing.cache.put
    try:
        if daemon.role is Role.SERVE:
            for token in await connections.current(named_ids(daemon.settings.callers)[:_WARM]):
                put(token)
        elif daemon.role.serves:
            async for token in connections.recently_used(_WARM):
                put(token)
    except DatabaseUnavailableError:
        return


async def _drain(daemon: Daemon, grace: _Grace) -> None:
    """Begin nothing more, and wait for what is in flight to be stored. May be repeated."""
    daemon.health.is_stopping()
    # Open streams would hold up the listener until its grace is over.
    daemon.upkeep.feed.close()
    daemon.refreshing.scheduler.stop()
    try:
        async with grace.timeout():
            # A sweep that was cut after its claims would leave them to be taken over.
            await daemon.refreshing.scheduler.stopped()
            await asyncio.gather(
                daemon.refreshing.refresher.drain(),
                daemon.refreshing.asking.drain(),
                daemon.uncut.drain(),
            )
    except TimeoutError:
        log.warning("stopped_with_requests_in_flight", grace=_GRACE)
    try:
        await daemon.housekeeping.remember_use()
        if daemon.role.refreshes:
            await daemon.storage.incarnations.leave()
        await daemon.keys.leave()
    except DatabaseUnavailableError:
        return


async def _end_exchanges(daemon: Daemon, grace: _Grace) -> None:
    with suppress(TimeoutError):
        async with grace.timeout():
            await daemon.uncut.drain()


@contextmanager
def _signals(stop: asyncio.Event, reloading: Reloading) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reloading.request)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
