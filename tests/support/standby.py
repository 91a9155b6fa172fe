"""A primary and a streaming standby, made by the same programs; one may be killed, one promoted.

The standby begins as a copy of the stopped primary's files. It receives the primary's log through
a wire, so that a test can make it fall behind.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import asyncpg

from daemon.domain.clock import SystemClock, system_entropy
from daemon.persistence.embedded.cluster import SUPERUSER
from daemon.persistence.embedded.layout import Layout
from daemon.persistence.embedded.server import EmbeddedPostgres
from tests.support.polling import eventually
from tests.support.postgres import QUICK
from tests.support.wire import Wire

_SIGNAL = "standby.signal"


class Pair:
    """Both servers, and a wire to each: ``url`` names both, the first primary first.

    Main thread only. ``synchronous``: no commit is acknowledged before the standby has it.
    """

    def __init__(self, directory: Path, *, synchronous: bool) -> None:
        self._homes = (directory / "a", directory / "b")
        self._synchronous = synchronous
        # Nothing is written through to the disk, but what is acknowledged has been replicated.
        self._settings = {**QUICK.settings, "synchronous_commit": "on"}
        self.primary = self._server(0)
        self.standby = self._server(1)
        self._replication: Wire | None = None
        self._wires: list[Wire] = []

    @property
    def url(self) -> str:
        """Return the database URL with both hosts, as a configuration has it."""
        first, second = self._wires
        return (
            first.url.replace(first.address, f"{first.address},{second.address}")
            + "&target_session_attrs=primary"
        )

    @property
    def replication(self) -> Wire:
        """Return the wire that the standby receives the primary's log through."""
        if self._replication is None:
            raise AssertionError("not started")
        return self._replication

    async def __aenter__(self) -> Self:
        made = self._server(0)
        await made.start()
        await made.stop()
        first, second = (Layout(home).cluster for home in self._homes)
        second.parent.mkdir(parents=True, mode=0o700)
        shutil.copytree(first, second)
        self._mark_standby(1)
        names = "standby" if self._synchronous else ""
        self.primary = self._server(0, {"synchronous_standby_names": names})
        await self.primary.start()
        self._replication = Wire(self._super(self.primary))
        await self._replication.mend()
        self.standby = self._server(1, {"primary_conninfo": self._conninfo()})
        await self.standby.start()
        for server in (self.primary, self.standby):
            wire = Wire(server.url())
            await wire.mend()
            self._wires.append(wire)
        await eventually(self.is_streaming, what="the standby's connection")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for wire in (*self._wires, *([self._replication] if self._replication else [])):
            await wire.__aexit__(None, None, None)
        await self.standby.stop()
        await self.primary.stop()

    async def is_streaming(self) -> bool:
        """Tell whether the standby receives what is committed."""
        return await self._ask(self.primary, "SELECT count(*) FROM pg_stat_replication") == 1

    async def kill_primary(self) -> None:
        """Let the primary's host vanish: what it was about to say is lost."""
        await self._wires[0].cut()
        await self.replication.cut()
        if self.primary.pid is not None:
            os.kill(self.primary.pid, signal.SIGQUIT)
        await self.primary.stop()

    async def promote(self) -> None:
        """Make the standby the primary; returns when it takes writes."""
        if not await self._ask(self.standby, "SELECT pg_promote(true, 30)"):
            raise AssertionError("the standby was not promoted")

    async def fence_primary(self) -> None:
        """Let the primary refuse writes from now on, with every connection left open."""
        await self._ask(self.primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        await self._ask(self.primary, "SELECT pg_reload_conf()")

    async def bring_back_stale(self) -> None:
        """Start the killed primary again, at its place, as a server that only reads."""
        self._mark_standby(0)
        self.primary = self._server(0)
        await self.primary.start()
        await self._wires[0].mend()

    def _server(self, which: int, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
        return EmbeddedPostgres(
            self._homes[which],
            entropy=system_entropy,
            clock=SystemClock(),
            options=replace(QUICK, settings={**self._settings, **(settings or {})}),
        )

    def _mark_standby(self, which: int) -> None:
        (Layout(self._homes[which]).data / _SIGNAL).touch(mode=0o600)

    def _super(self, server: EmbeddedPostgres) -> str:
        return server.url("postgres", role=SUPERUSER)

    def _conninfo(self) -> str:
        """Return how the standby reaches the primary: through the wire, as superuser."""
        host, _, port = self.replication.address.partition(":")
        password = unquote(urlsplit(self._super(self.primary)).password or "")
        return (
            f"host={host} port={port} user={SUPERUSER} password={password} "
            "application_name=standby sslmode=disable"
        )

    async def _ask(self, server: EmbeddedPostgres, statement: str) -> object:
        connection = await asyncpg.connect(self._super(server))
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()
