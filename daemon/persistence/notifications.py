"""LISTEN and NOTIFY: how one replica's commit reaches the caches of all.

Its hard idea: a notification is a hint. PostgreSQL drops them for whoever is not listening, so a
listener says when it begins to hear (everything before is unknown) and a notifier may forget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.background import backoff, ended, pause, stop
from daemon.persistence.dialing import DatabaseConnection, TimelyConnection, hang_up, probe
from daemon.persistence.postgres import Database
from daemon.persistence.unavailable import LIBRARY_ERRORS

CHANNEL = "tokenward"

# NOTIFY takes 8000 bytes, the ending NUL included.
_PAYLOAD_BYTES = 7999
# Every notification wakes every listener and commits under one lock of the database: at a
# thousand refreshes a second this makes two hundred wake-ups of them, for 5 ms of delay.
_GATHER_SECONDS = 0.005
# What waits while the database is away; older items are forgotten, polling heals that.
_PENDING_ITEMS = 10_000
_SEND_SECONDS = 2.0


class Notifications:
    """One connection that listens, for ever, with everybody here who wants to hear.

    ``on_listening`` is called each time listening has begun, the first time included: what was
    published before that moment may have been missed and must be read again. ``on_state`` hears
    each change of ``up``, and the first finding.
    """

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        entropy: Entropy,
        on_state: Callable[[bool], None] = lambda _: None,
        on_listening: Callable[[], None] = lambda: None,
        channel: str = CHANNEL,
    ) -> None:
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._on_state = on_state
        self._on_listening = on_listening
        self._channel = channel
        self._subscribers: list[Callable[[str], None]] = []
        self._up: bool | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Tell whether notifications are being heard, as far as is known."""
        return self._up is True

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call ``callback`` with every published item; return what ends that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    async def start(self) -> bool:
        """Try to listen once, keep at it in the background, and tell whether it listens."""
        connection = await self._listen()
        self._task = asyncio.create_task(self._keep(connection), name="notifications")
        return self.up

    async def wait_closed(self) -> None:
        """Return after ``close``; raise what ended the background work, if anything did."""
        await ended(self._task)

    async def close(self) -> None:
        """Stop listening."""
        await stop(self._task)
        self._set_up(is_up=False)

    async def _listen(self) -> TimelyConnection | None:
        try:
            connection = await self._database.connect()
        except DatabaseUnavailableError:
            self._set_up(is_up=False)
            return None
        try:
            await connection.add_listener(self._channel, self._hear)
        except LIBRARY_ERRORS:
            connection.terminate()
            self._set_up(is_up=False)
            return None
        self._set_up(is_up=True)
        self._on_listening()
        return connection

    async def _keep(self, connection: TimelyConnection | None) -> None:
        failures = 0
        while True:
            if connection is not None:
                failures = 0
                try:
                    await self._watch(connection)
                finally:
                    connection.terminate()
            self._set_up(is_up=False)
            await self._clock.sleep(backoff(failures, self._entropy))
            failures += 1
            connection = await self._listen()

    async def _watch(self, connection: TimelyConnection) -> None:
        """Return when ``connection`` is of no use any more."""
        # It hears nothing from a connection that died without a word, so it asks.
        limits = self._database.limits
        gone = asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        while not connection.is_closed():
            if await pause(self._clock, limits.probe_every, gone):
                return
            try:
                await probe(connection, seconds=limits.probe)
            except LIBRARY_ERRORS:
                return

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        for item in str(payload).split("\n"):
            for subscriber in tuple(self._subscribers):
                subscriber(item)

    def _set_up(self, *, is_up: bool) -> None:
        if self._up is not is_up:
            self._up = is_up
            self._on_state(is_up)


def next_batch(pending: Iterable[str], *, limit: int = _PAYLOAD_BYTES) -> list[str]:
    """Return as many items, from the first on, as one notification of ``limit`` bytes holds."""
    taken: list[str] = []
    size = -1
    for item in pending:
        size += 1 + len(item.encode())
        if size > limit:
            break
        taken.append(item)
    return taken


class Notifier:
    """Publishes items, gathered, on a connection of its own. Best effort, never in the way.

    That connection does not wait for the disk (``synchronous_commit=off``): a notification that
    a crash loses concerns nobody.
    """

    def __init__(
        self, database: Database, *, clock: Clock, entropy: Entropy, channel: str = CHANNEL
    ) -> None:
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._channel = channel
        self._pending: dict[str, None] = {}
        self._wanted = asyncio.Event()
        self._connection: TimelyConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def publish(self, item: str) -> None:
        """Let ``item`` be sent to every listener: within milliseconds, or when that works again.

        An item that already waits is sent once; beyond 10,000 that wait the oldest are forgotten.

        Raises:
            ValueError: ``item`` is no line of 1 to 7999 bytes of UTF-8 without NUL.
        """
        if not item or "\n" in item or "\0" in item or len(item.encode()) > _PAYLOAD_BYTES:
            raise ValueError("a notification is a line of 1 to 7999 bytes without NUL")
        self._pending[item] = None
        if len(self._pending) > _PENDING_ITEMS:
            del self._pending[next(iter(self._pending))]
        self._wanted.set()

    async def start(self) -> None:
        """Begin to send. It connects at the first item."""
        self._task = asyncio.create_task(self._keep_sending(), name="notifier")

    async def wait_closed(self) -> None:
        """Return after ``close``; raise what ended the background work, if anything did."""
        await ended(self._task)

    async def close(self) -> None:
        """Send what waits, if that works at once, and hang up."""
        await stop(self._task)
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                await self._send_pending()
        except (DatabaseUnavailableError, TimeoutError):
            self._pending.clear()
        if self._connection is not None:
            await hang_up(self._connection)

    async def _keep_sending(self) -> None:
        failures = 0
        while True:
            await self._wanted.wait()
            await self._clock.sleep(_GATHER_SECONDS)
            try:
                await self._send_pending()
            except DatabaseUnavailableError:
                await self._clock.sleep(backoff(failures, self._entropy))
                failures += 1
            else:
                failures = 0

    async def _send_pending(self) -> None:
        while self._pending:
            # Out of the queue first: the same item published meanwhile is news and goes again.
            batch = next_batch(self._pending)
            for item in batch:
                del self._pending[item]
            try:
                await self._send(await self._connected(), "\n".join(batch))
            except BaseException:
                self._pending = {**dict.fromkeys(batch), **self._pending}
                raise
        self._wanted.clear()

    async def _connected(self) -> DatabaseConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._database.connect(synchronous_commit="off")
        return self._connection

    async def _send(self, connection: DatabaseConnection, payload: str) -> None:
        try:
            await connection.execute(
                "SELECT pg_notify($1, $2)", self._channel, payload, timeout=_SEND_SECONDS
            )
        except LIBRARY_ERRORS as error:
            connection.terminate()
            raise DatabaseUnavailableError("a notification could not be sent") from error
