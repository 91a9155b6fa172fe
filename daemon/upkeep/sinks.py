"""[serve] Files that hold current tokens, for applications that can only read files.

The one hard idea: each sink is a loop of its own, which looks at what memory has and at what the
disk has and makes the second like the first. What it hears only wakes it up, so nothing that it
missed is lost, and a disk that hangs holds up nothing but sinks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from daemon.domain.clock import Clock, Entropy
from daemon.domain.errors import StorageError
from daemon.domain.sink import (
    FIRST_RETRY,
    LONGEST_RETRY,
    Action,
    Held,
    Left,
    Nothing,
    Sink,
    Unknown,
    Wanted,
    decide,
)
from daemon.persistence.background import backoff, stop
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from daemon.upkeep.disk_threads import DiskThreads
from daemon.upkeep.sink_content import held_of
from daemon.upkeep.sink_files import SinkError, SinkFile
from daemon.upkeep.sink_notices import NoticeError

# Disks are waited for here and nowhere else. A few, so that one that hangs leaves room for others.
_THREADS = 4
# A stop does not wait longer than this for a disk that hangs, in seconds.
_PATIENCE = 5.0


class SinkEvents(Protocol):
    """Where sinks say what happened: ``daemon.telemetry.sinks.SinkTelemetry``."""

    def sink_written(self, sink: Sink, *, generation: int) -> None:
        """Tell that a file holds another token now."""

    def sink_removed(self, sink: Sink) -> None:
        """Tell that a file is gone, because there is no token for it."""

    def sink_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Tell that a file could not be brought up to date; ``is_news``: not for this reason."""

    def sink_told(self, sink: Sink) -> None:
        """Tell that the application was told of a change."""

    def sink_notice_failed(self, sink: Sink, *, error: str, is_news: bool) -> None:
        """Tell that the application could not be told."""

    def sinks_failing(self, count: int) -> None:
        """Tell how many sinks are not as they should be."""


class Tells(Protocol):
    """What tells an application: ``daemon.upkeep.sink_notices.Notices``."""

    async def tell(self, sink: Sink, *, is_there: bool) -> None:
        """Tell of a change; raises NoticeError where that did not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkParts:
    """What sinks work with. ``sinks`` gives those of the configuration in force."""

    sinks: Callable[[], Sequence[Sink]]
    cache: TokenCache
    memory: Memory
    notices: Tells
    events: SinkEvents
    clock: Clock
    entropy: Entropy


class Sinks:
    """Keeps all sinks for as long as it runs."""

    def __init__(self, parts: SinkParts) -> None:
        self._parts = parts
        self._keepers: dict[Sink, _Keeper] = {}
        self._tasks: dict[Sink, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._threads = DiskThreads(_THREADS)

    def reload(self) -> None:
        """Follow a changed configuration soon."""
        self._changed.set()

    async def first_look(self) -> None:
        """Return once every sink was tried once, well or not."""
        await asyncio.gather(
            *(self._keeper(sink).has_looked.wait() for sink in self._parts.sinks())
        )

    async def run(self) -> None:
        """Keep sinks until cancelled; files stay then, for whoever reads them during a restart."""
        try:
            while True:
                self._changed.clear()
                await self._adjust()
                await self._until_changed()
        finally:
            for task in self._tasks.values():
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=_PATIENCE)
            self._threads.abandon()
            if self._tasks:
                await asyncio.wait(self._tasks.values())

    async def _until_changed(self) -> None:
        """Return when the configuration changed; raise what a keeper died of."""
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            done, _ = await asyncio.wait(
                {changed, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            changed.cancel()

    async def _adjust(self) -> None:
        """End what is not configured any more, and remove its file; then begin what is new."""
        wanted = dict.fromkeys(self._parts.sinks())
        kept = {sink.path for sink in wanted}
        for sink in [each for each in self._tasks if each not in wanted]:
            keeper = self._keepers.pop(sink)
            await stop(self._tasks.pop(sink))
            if sink.path not in kept:
                await keeper.discard()
        for sink in wanted:
            if sink not in self._tasks:
                self._tasks[sink] = asyncio.create_task(self._keeper(sink).run(), name="sink")
        self._count()

    def _keeper(self, sink: Sink) -> _Keeper:
        if sink not in self._keepers:
            self._keepers[sink] = _Keeper(sink, self._parts, self._threads, self._count)
        return self._keepers[sink]

    def _count(self) -> None:
        failing = sum(keeper.is_failing for keeper in self._keepers.values())
        self._parts.events.sinks_failing(failing)


class _Keeper:
    """Keeps one sink."""

    def __init__(
        self,
        sink: Sink,
        parts: SinkParts,
        threads: DiskThreads,
        on_judged: Callable[[], None],
    ) -> None:
        self._sink = sink
        self._parts = parts
        self._file = SinkFile(sink)
        self._threads = threads
        self._on_judged = on_judged
        self._left: Left | None = None
        # The application was not told yet of a change.
        self._owes = False
        self._error: str | None = None
        self._failures = 0
        self.has_looked = asyncio.Event()

    @property
    def is_failing(self) -> bool:
        """Tell whether the file or its application is behind."""
        return self._error is not None

    async def run(self) -> None:
        """Keep the file until cancelled."""
        while True:
            # Before the look: what changes after it ends the wait at once.
            change = self._parts.cache.changed(self._sink.connection)
            try:
                wait = await self._look()
                self._on_judged()
                self.has_looked.set()
                await self._pause(wait, change)
            finally:
                change.cancel()

    async def discard(self) -> None:
        """Remove the file, because nobody keeps it any more."""
        try:
            await self._threads.run(self._file.remove)
        except SinkError as error:
            self._parts.events.sink_failed(self._sink, error=str(error), is_news=True)
        else:
            self._parts.events.sink_removed(self._sink)

    async def _look(self) -> float:
        """Do what is to be done now; return the seconds to the next look."""
        events, sink = self._parts.events, self._sink
        try:
            wait = await self._keep()
        except SinkError as error:
            # A name may be new and not synced: the application is told once that is settled.
            self._owes = sink.tells
            events.sink_failed(sink, error=str(error), is_news=self._fail(str(error)))
            return self._retry_in()
        try:
            await self._tell()
        except NoticeError as error:
            events.sink_notice_failed(sink, error=str(error), is_news=self._fail(str(error)))
            return min(wait, self._retry_in())
        self._error, self._failures = None, 0
        return wait

    async def _keep(self) -> float:
        sink, events = self._sink, self._parts.events
        held, generation = await self._held()
        present = await self._threads.run(self._file.look)
        now = self._parts.clock.now().timestamp()
        decision = decide(sink, held, present, now=now, left=self._left)
        if decision.action is Action.WRITE and isinstance(held, Wanted):
            await self._threads.run(partial(self._file.write, held.content))
            present = await self._threads.run(self._file.look)
            self._note_use()
            events.sink_written(sink, generation=generation)
        elif decision.action is Action.REMOVE:
            await self._threads.run(self._file.remove)
            self._left = None
            events.sink_removed(sink)
        if isinstance(held, Wanted) and decision.action is not Action.REMOVE:
            self._left = Left(present=present, until=held.until)
        self._owes = sink.tells and (self._owes or decision.action is not Action.KEEP)
        return decision.look_in

    async def _tell(self) -> None:
        if self._owes:
            is_there = self._left is not None
            await self._parts.notices.tell(self._sink, is_there=is_there)
            self._owes = False
            self._parts.events.sink_told(self._sink)

    async def _held(self) -> tuple[Held, int]:
        """Return what the file should hold, and that token's generation."""
        name, cache = self._sink.connection, self._parts.cache
        entry = cache.get(name)
        if entry is None:
            try:
                await self._parts.memory.reload([name])
            except StorageError:
                return Unknown(), 0
            entry = cache.get(name)
        if entry is None:
            return Nothing(), 0
        return held_of(entry, self._sink.format), entry.generation

    def _note_use(self) -> None:
        """A token that goes into a file is used: it stays in memory, and people see it."""
        entry = self._parts.cache.get(self._sink.connection)
        if entry is not None:
            entry.used = True

    def _fail(self, error: str) -> bool:
        """Note a failure; tell whether it is another one than before."""
        is_news = error != self._error
        self._error = error
        self._failures += 1
        return is_news

    def _retry_in(self) -> float:
        return backoff(
            self._failures - 1, self._parts.entropy, first=FIRST_RETRY, cap=LONGEST_RETRY
        )

    async def _pause(self, seconds: float, change: asyncio.Future[None]) -> None:
        sleep = asyncio.ensure_future(self._parts.clock.sleep(seconds))
        try:
            await asyncio.wait({sleep, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
