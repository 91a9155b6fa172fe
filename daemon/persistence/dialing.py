"""Opening one connection to the primary, wherever among the URL's hosts it is now.

Its hard idea: asyncpg's connect timeout spans all hosts of a URL, so one that swallows packets
would hide those behind it. Each host is therefore tried on its own, the last good one first.
"""

from __future__ import annotations

import re
import socket
from asyncio import Transport
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import orjson
from asyncpg.connect_utils import SessionAttribute
from pydantic import SecretStr

from daemon.domain.errors import StorageError
from daemon.persistence.unavailable import LIBRARY_ERRORS, classify, unavailable

DatabaseConnection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)
"""What a statement is sent through: a connection of the pool, or one of its own."""

_CLOSE_SECONDS = 2.0
# A peer that acknowledges nothing for this long is gone. Without it a host that vanished would
# hold a statement until the command's own limit, and an idle LISTEN for hours.
_UNACKNOWLEDGED_MS = 4000
_AUTHORITY = re.compile(r"([a-z]+://)([^/?]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on waiting, in seconds.

    ``connect`` is for each host; it takes some ms. ``acquire`` is for a free connection, or for
    the end of a reconnect under way. ``statement`` is the server's own limit; ours comes 2 s
    later, so that a connection outlives a slow statement. ``probe`` is for the answer to one,
    ``probe_every`` between two: they find a server that hangs, or turned read-only, where no
    traffic does.
    """

    connect: float = 3.0
    acquire: float = 5.0
    statement: float = 10.0
    probe: float = 5.0
    probe_every: float = 10.0

    @property
    def server_settings(self) -> dict[str, str]:
        """Return the limits as the server keeps them."""
        return {
            "application_name": "tokenward",
            "statement_timeout": f"{self.statement * 1000:.0f}ms",
            "lock_timeout": "5s",
            # No transaction is held over anything slow; one that is was forgotten.
            "idle_in_transaction_session_timeout": "15s",
            # Compiling takes longer than any statement of ours.
            "jit": "off",
        }


class TimelyConnection(asyncpg.Connection):
    """A connection whose socket notices within seconds that the other host is gone."""

    def __init__(self, protocol: Any, transport: Transport, *rest: Any) -> None:
        super().__init__(protocol, transport, *rest)
        sock = transport.get_extra_info("socket")
        if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def single_host_urls(url: str) -> tuple[str, ...]:
    """Return one URL for each host of ``url``, in its order.

    Hosts in the query (``?host=a,b``) stay together: asyncpg tries them within one timeout.
    """
    found = _AUTHORITY.match(url)
    if found is None:
        return (url,)
    before, authority = found.groups()
    credentials, at, hosts = authority.rpartition("@")
    urls = tuple(
        f"{before}{credentials}{at}{host}{url[found.end() :]}" for host in hosts.split(",")
    )
    # Only now, one host each: Python refuses an IPv6 address that stands behind another host.
    for single in urls:
        urlsplit(single)
    return urls


class Dialer:
    """Opens connections that accept writes.

    Every one has ``jsonb`` as Python values (orjson) and bounds on statements, locks and idle
    transactions. PgBouncer between must pool sessions (LISTEN and advisory locks belong to one)
    and name ``statement_timeout``, ``lock_timeout``, ``idle_in_transaction_session_timeout`` and
    ``jit`` in ``ignore_startup_parameters`` unless it tracks them.
    """

    def __init__(self, url: SecretStr | str, limits: Limits) -> None:
        self.limits = limits
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        try:
            self._urls = [SecretStr(part) for part in single_host_urls(text)]
        except ValueError:
            raise _bad_url() from None

    async def dial(self, **settings: str) -> TimelyConnection:
        """Open a connection; ``settings`` are server settings for its session.

        Raises what asyncpg raises where no host has a primary to give, and ``StorageError``
        where the URL itself is of no use (its text is in no error: it holds a password).
        """
        last = len(self._urls) - 1
        for position, url in enumerate(list(self._urls)):
            try:
                connection = await _dial_one(url, settings, self.limits)
            except LIBRARY_ERRORS:
                if position == last:
                    raise
            else:
                self._prefer(url)
                return connection
        raise AssertionError("a database URL has at least one host")

    async def connect(self, **settings: str) -> TimelyConnection:
        """Like ``dial``, but raises ``DatabaseUnavailableError``. The caller closes it."""
        try:
            return await self.dial(**settings)
        except LIBRARY_ERRORS as error:
            if classify(error) is None:
                raise
            raise unavailable(error) from error

    def _prefer(self, url: SecretStr) -> None:
        self._urls.remove(url)
        self._urls.insert(0, url)


async def _dial_one(
    url: SecretStr, settings: Mapping[str, str], limits: Limits
) -> TimelyConnection:
    try:
        connection = await asyncpg.connect(
            url.get_secret_value(),
            timeout=limits.connect,
            command_timeout=limits.statement + 2.0,
            connection_class=TimelyConnection,
            server_settings={**limits.server_settings, **settings},
            # A primary whose settings refuse writes (a fenced one) is no better than a standby.
            target_session_attrs=SessionAttribute.read_write,
        )
    except ValueError:
        raise _bad_url() from None
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {limits.connect:.0f} s") from error
    except asyncpg.InsufficientPrivilegeError as error:
        # CONNECT may be granted again at any time, as after somebody's maintenance.
        raise unavailable(error) from error
    except asyncpg.PostgresError as error:
        if classify(error) is None:
            raise StorageError(
                f"the server refuses what database.url asks for: {error.args[0]} "
                f"({error.sqlstate}); correct its parameters"
            ) from error
        raise
    try:
        await connection.set_type_codec(
            "jsonb",
            schema="pg_catalog",
            encoder=lambda value: orjson.dumps(value).decode(),
            decoder=orjson.loads,
        )
    except BaseException:
        connection.terminate()
        raise
    return connection


def _bad_url() -> StorageError:
    """Say what to write, never what was written: the library's own text quotes the URL."""
    return StorageError(
        "database.url is not usable: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE with "
        "reserved characters percent-encoded, and only parameters that PostgreSQL knows"
    )


async def hang_up(connection: DatabaseConnection) -> None:
    """Close ``connection``, politely for a moment, else without asking. Never raises its errors."""
    try:
        await connection.close(timeout=_CLOSE_SECONDS)
    except LIBRARY_ERRORS:
        connection.terminate()


async def probe(connection: DatabaseConnection, *, seconds: float) -> None:
    """Raise an error of asyncpg's unless the server answers in time and still accepts writes."""
    if await connection.fetchval("SHOW transaction_read_only", timeout=seconds) == "on":
        raise asyncpg.ReadOnlySQLTransactionError("the server accepts no writes any more")
