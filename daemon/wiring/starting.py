"""The start, in its order: keys, journal, probes, database, cache, then the listeners.

The hard idea: what is opened says there and then how it is closed. So a start that fails half way
closes what it has opened, in reverse, and so does every stop.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

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
from daemon.telemetry.tracing import open_tracing
from daemon.wiring.assembly import Daemon
from daemon.wiring.configuration import Configuration
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.reloading import callers_of, warn
from daemon.wiring.service_manager import ServiceManager
from daemon.wiring.stopping import Grace, drain, end_exchanges

log = structlog.get_logger()

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


def allow_many_files() -> None:
    """Raise the soft limit of open files: listeners alone may hold some thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def start_embedded(
    settings: Settings,
    world: World,
    stack: AsyncExitStack,
    background: dict[str, Callable[[], Awaitable[None]]],
) -> SecretStr:
    """Start the embedded PostgreSQL, add its watch to ``background``, and return its URL.

    Raises:
        StorageError: it cannot run.
    """
    postgres = EmbeddedPostgres(settings.state_dir, entropy=world.entropy, clock=world.clock)
    url = await postgres.start()
    stack.push_async_callback(postgres.stop)
    background["embedded postgres"] = postgres.watch
    return SecretStr(url)


async def build(
    settings: Settings,
    url: SecretStr,
    world: World,
    stack: AsyncExitStack,
    *,
    role: Role,
    stop: Callable[[], None],
) -> Daemon:
    """Take the keys and the journal, and return all parts, joined; nothing is opened yet.

    Raises:
        ConfigurationError: the file of the callers' key cannot be used.
        KeyringError: an encryption key cannot be made or read.
        JournalError: another process has the journal, or its directory cannot be used.
    """
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


async def open_all(
    daemon: Daemon, stack: AsyncExitStack, grace: Grace, inherited: socket.socket | None
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
    stack.push_async_callback(end_exchanges, daemon, grace)
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
    stack.push_async_callback(drain, daemon, grace)


async def finish_start(
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
