"""Start, run, stop: what runs in between, who owns it, and what each signal does.

The hard idea: every task has one owner. One that dies ends the daemon, for half a daemon is worse
than none; what is open is closed then as after a signal.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import structlog

from daemon.config.settings import Settings
from daemon.domain.role import Role
from daemon.telemetry.logs import LogPipeline
from daemon.wiring.assembly import Daemon
from daemon.wiring.hardening import open_state_dir
from daemon.wiring.parts import World
from daemon.wiring.reloading import Reloading
from daemon.wiring.service_manager import NO_SUPERVISION, ServiceManager, Supervision
from daemon.wiring.starting import (
    OnStarted,
    allow_many_files,
    build,
    finish_start,
    open_all,
    start_embedded,
)
from daemon.wiring.stopping import Grace, drain

log = structlog.get_logger()


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
    allow_many_files()
    if role.refreshes or not settings.callers:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if found := open_state_dir(settings.state_dir):
        log.warning("configuration_warning", path="state_dir", detail=found)
    async with AsyncExitStack() as stack:
        background: dict[str, Callable[[], Awaitable[None]]] = {}
        url = settings.database_url
        if url is None:
            url = await start_embedded(settings, world, stack, background)
        daemon = await build(settings, url, world, stack, role=role, stop=stop.set)
        daemon.telemetry.metrics.watch_log(lambda: logs.dropped)
        stack.enter_context(_signals(stop, Reloading(daemon, manager, logs=logs, load=load)))
        grace = Grace()
        await open_all(daemon, stack, grace, inherited)
        background |= _background(daemon, manager)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_owned(work), name=n) for n, work in background.items()]
            starting = finish_start(daemon, manager, on_started)
            tasks.append(group.create_task(starting, name="start"))
            await stop.wait()
            log.info("stopping")
            manager.stopping()
            await drain(daemon, grace)
            for task in tasks:
                task.cancel()
    log.info("stopped")


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
