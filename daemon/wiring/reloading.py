"""SIGHUP: the configuration is read again; a bad one changes nothing and is logged whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from daemon.config.reload import Changes, changes
from daemon.config.settings import Caller, Settings
from daemon.domain.clock import Entropy
from daemon.domain.errors import ConfigurationError, DatabaseUnavailableError, Finding
from daemon.sidecar.access import ensure_api_key
from daemon.telemetry.logs import LogPipeline
from daemon.wiring.assembly import Daemon
from daemon.wiring.service_manager import ServiceManager

log = structlog.get_logger()


def callers_of(settings: Settings, entropy: Entropy) -> tuple[Caller, ...]:
    """Return the configured callers, or the one of ``{state_dir}/api.key`` where there is none.

    Raises:
        ConfigurationError: the key file cannot be made or read.
    """
    if settings.callers:
        return settings.callers
    caller, path = ensure_api_key(settings.state_dir, entropy)
    log.info("api_key_in_use", path=str(path))
    return (caller,)


def warn(warnings: Sequence[str]) -> None:
    """Log the configuration's warnings, each ``path: message``."""
    for warning in warnings:
        path, _, detail = warning.partition(": ")
        log.warning("configuration_warning", path=path, detail=detail)


class Reloading:
    """Applies a configuration that was read again."""

    def __init__(
        self,
        daemon: Daemon,
        manager: ServiceManager,
        *,
        logs: LogPipeline,
        load: Callable[[], Settings] | None,
    ) -> None:
        self._daemon = daemon
        self._manager = manager
        self._logs = logs
        self._load = load
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def request(self) -> None:
        """Reload soon; a request while one runs lets it run again: it may have read too early."""
        self._again = True
        if self._load is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._tell_and_reload(self._load), name="reload")

    async def _tell_and_reload(self, load: Callable[[], Settings]) -> None:
        with self._manager.reloading():
            while self._again:
                self._again = False
                await self._reload(load)

    async def _reload(self, load: Callable[[], Settings]) -> None:
        try:
            found = changes(self._daemon.settings, load())
            await self._refuse_orphans(found)
            callers = callers_of(found.settings, self._daemon.world.entropy)
            if "encryption.keys" in found.applied:
                await self._daemon.keys.replace(found.settings.encryption_keys)
        except ConfigurationError as error:
            for finding in error.findings:
                log.warning("configuration_rejected", path=finding.path, detail=finding.message)
            return
        except DatabaseUnavailableError as error:
            log.warning("configuration_rejected", path="", detail=f"{error}; nothing was changed")
            return
        await self._apply(found, callers)

    async def _refuse_orphans(self, found: Changes) -> None:
        """Raise where a provider would go whose connections hold tokens."""
        if not found.removed_providers:
            return
        in_use = await self._daemon.storage.connections.providers_in_use()
        findings = [
            Finding(
                f"providers.{name}",
                f"is gone from the configuration, but {in_use[name]} connections use it; "
                "disconnect them first, or restart to go on without it",
            )
            for name in found.removed_providers
            if in_use.get(name)
        ]
        if findings:
            raise ConfigurationError(findings)

    async def _begin_anew_with_providers(self, found: Changes) -> None:
        refreshes = self._daemon.storage.refreshes
        await refreshes.add_providers(list(found.settings.providers))
        for path in found.applied:
            if path.startswith("providers."):
                await refreshes.reset_provider(path.split(".")[1])

    async def _apply(self, found: Changes, callers: tuple[Caller, ...]) -> None:
        daemon, settings = self._daemon, found.settings
        daemon.configuration.settings = settings
        daemon.callers.replace(callers, allowed_uids=settings.listen.api.allowed_uids)
        if "kubernetes" in found.applied:
            daemon.service_accounts.reconfigured()
        if "callers" in found.applied:
            daemon.upkeep.feed.end_all()
        self._logs.apply(settings.log)
        daemon.telemetry.metrics.add_providers(settings.providers)
        daemon.telemetry.reads.add_providers(settings.providers)
        daemon.sinks.reload()
        for finding in found.restart:
            log.warning("configuration_needs_restart", path=finding.path, detail=finding.message)
        warn(settings.warnings)
        try:
            if daemon.role.refreshes:
                await self._begin_anew_with_providers(found)
        except DatabaseUnavailableError:
            log.warning("provider_state_not_reset")
        daemon.recovery.wake()
        daemon.refreshing.scheduler.wake()
        log.info("configuration_reloaded", applied=list(found.applied))
