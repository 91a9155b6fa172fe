"""Start, run, stop: the order of things, and what each signal does.

Start: the database, the keys, the probes, the cache, then the listeners. Stop: nothing new
begins, what is in flight ends and is stored, the listeners close, the database goes last.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from pydantic import SecretStr

from daemon.config.settings import Settings
from daemon.domain.errors import DatabaseUnavailableError
from daemon.oauth.api_session import ApiSession
from daemon.oauth.outbound import Outbound
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.embedded.server import EmbeddedPostgres
from daemon.persistence.journal import Journal
from daemon.persistence.keyring import open_keyring
from daemon.sidecar.access import Callers
from daemon.telemetry.logs import LogPipeline
from daemon.wiring.assembly import Daemon
from daemon.wiring.configuration import Configuration
from daemon.wiring.parts import Storage, Telemetry, World
from daemon.wiring.reloading import Reloading, callers_of, warn

log = structlog.get_logger()

# Kubernetes' terminationGracePeriodSeconds should be 75: the hard end of a request, the time to
# store its reply, and the rest of the stop.
_GRACE = 70.0
# Three listeners of 4,096 connections each, and what refreshing needs.
_OPEN_FILES = 16_384
# Entries read into memory at the start: all of a sidecar's, and quick for a large database.
_WARM = 10_000
# How long a start waits for its first gauges, in seconds.
_FIRST_COUNT = 0.5
_YOUNG_OBJECTS = 10_000

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
) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration again by ``load``.

    A database that is away is waited for; ``on_started`` is awaited once the first full start is
    done.

    Raises:
        ConfigurationError: an address cannot be listened at, a key file cannot be used.
        StorageError: the schema is newer, a key is wrong or missing, PostgreSQL cannot run.
        ExceptionGroup: a background task died; its cause is inside.
    """
    stop = asyncio.Event()
    _allow_many_files()
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        background: dict[str, Callable[[], Awaitable[None]]] = {}
        url = settings.database_url
        if url is None:
            url = await _embedded(settings, world, stack, background)
        daemon = await _build(settings, url, world, stack)
        daemon.telemetry.metrics.watch_log(lambda: logs.dropped)
        stack.enter_context(_signals(stop, Reloading(daemon, logs=logs, load=load)))
        grace = _Grace()
        await _open(daemon, stack, grace)
        background |= _background(daemon)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_owned(work), name=n) for n, work in background.items()]
            tasks.append(group.create_task(_finish_start(daemon, on_started), name="start"))
            await stop.wait()
            log.info("stopping")
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


async def _build(settings: Settings, url: SecretStr, world: World, stack: AsyncExitStack) -> Daemon:
    keyring = open_keyring(
        settings.encryption_keys, state_dir=settings.state_dir, entropy=world.entropy
    )
    warn(settings.warnings)
    if keyring.warning:
        log.warning("configuration_warning", path="encryption.keys", detail=keyring.warning)
    configuration = Configuration(settings)
    telemetry = Telemetry(configuration, world)
    cipher = TokenCipher(keyring.keys, entropy=world.entropy)
    journal = Journal(settings.state_dir, cipher, clock=world.clock, entropy=world.entropy)
    stack.push_async_callback(journal.close)
    pending = journal.open()
    storage = Storage(
        url,
        keyring,
        configuration,
        cipher=cipher,
        owner=journal.owner,
        world=world,
        metrics=telemetry.metrics,
    )
    telemetry.metrics.watch_journal(lambda: len(journal))
    return Daemon(
        configuration,
        callers=Callers(
            callers_of(settings, world.entropy), allowed_uids=settings.listen.api.allowed_uids
        ),
        outbound=await stack.enter_async_context(Outbound()),
        apis=await stack.enter_async_context(ApiSession()),
        storage=storage,
        journal=journal,
        pending=pending,
        telemetry=telemetry,
        world=world,
    )


async def _open(daemon: Daemon, stack: AsyncExitStack, grace: _Grace) -> None:
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
    )
    stack.push_async_callback(daemon.public.stop)
    await daemon.public.start(address=listen.public.address)
    daemon.housekeeping.start()
    stack.callback(daemon.housekeeping.stop)
    # First of all when it comes to stopping, also after a failure.
    stack.push_async_callback(_drain, daemon, grace)


def _background(daemon: Daemon) -> dict[str, Callable[[], Awaitable[None]]]:
    refreshing = daemon.refreshing
    return {
        "database": daemon.storage.database.wait_closed,
        "notifications": refreshing.notifications.wait_closed,
        "notifier": refreshing.notifier.wait_closed,
        "scheduler": partial(_recover_then_refresh, daemon),
        "recovery": daemon.recovery.watch,
        "owner name": daemon.storage.owner_name.run,
        "follower": refreshing.follower.run,
        "revoking": daemon.upkeep.revoking.run,
        "webhooks": daemon.upkeep.webhooks.run,
        "feed": daemon.upkeep.feed.run,
    }


async def _recover_then_refresh(daemon: Daemon) -> None:
    """Store what the journal kept, as soon as the database is there; only then refresh."""
    await daemon.recovery.run()
    await daemon.refreshing.scheduler.run()


async def _owned(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _finish_start(daemon: Daemon, on_started: OnStarted | None) -> None:
    """Wait for the database, then declare the start done."""
    while True:
        await daemon.storage.database.wait_connected()
        try:
            await daemon.storage.refreshes.add_providers(list(daemon.settings.providers))
            if len(daemon.refreshing.cache) == 0:
                await _warm(daemon)
            # What a scrape shows first; a large database is counted after the start.
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_COUNT):
                    await daemon.housekeeping.set_gauges()
            break
        except DatabaseUnavailableError:
            await asyncio.sleep(1)
    # What the start has built lives as long as the process: no need to look at it again.
    gc.collect()
    gc.freeze()
    # A refresh makes some thousand short-lived objects: looked at every 700, most are in use.
    gc.set_threshold(_YOUNG_OBJECTS)
    daemon.refreshing.scheduler.wake()
    daemon.health.has_started()
    log.info("started", providers=len(daemon.settings.providers))
    if on_started is not None:
        await on_started(daemon)


async def _warm(daemon: Daemon) -> None:
    try:
        async for token in daemon.storage.connections.recently_used(_WARM):
            daemon.refreshing.cache.put(token)
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
            await asyncio.gather(daemon.refreshing.refresher.drain(), daemon.uncut.drain())
    except TimeoutError:
        log.warning("stopped_with_requests_in_flight", grace=_GRACE)
    try:
        await daemon.housekeeping.remember_use()
        await daemon.storage.incarnations.leave()
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
