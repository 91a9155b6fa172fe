"""Group commit: settlements that come while one statement runs go together into the next.

A commit costs a disk write whoever makes it; one statement for many is what keeps the database
from being the limit (design.md 8).
"""

from __future__ import annotations

import asyncio

from daemon.domain.claim import Settled, Settlement
from daemon.domain.clock import Clock
from daemon.domain.errors import DatabaseUnavailableError
from daemon.refresh.ports import RefreshStore

# One statement's arrays: past this its plan and its locks outgrow what grouping saves.
_LARGEST_GROUP = 256


class Settling:
    """Writes settlements in groups. Each ``settle`` answers for its own settlement only."""

    def __init__(self, store: RefreshStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: list[tuple[Settlement, asyncio.Future[Settled]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def settle(self, settlement: Settlement) -> Settled:
        """Write one settlement.

        Raises:
            DatabaseUnavailableError: it may or may not be written; settling again is safe.
        """
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._waiting.append((settlement, answer))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="settling")
        return await answer

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = (
                self._waiting[:_LARGEST_GROUP],
                self._waiting[_LARGEST_GROUP:],
            )
            await self._write(group)

    async def _write(self, group: list[tuple[Settlement, asyncio.Future[Settled]]]) -> None:
        try:
            answers = await self._store.settle(
                [settlement for settlement, _ in group], now=self._clock.now()
            )
        except DatabaseUnavailableError as error:
            for _, answer in group:
                _fail(answer, error)
        except Exception as error:  # noqa: BLE001 - the task owner: one bad row must not fail many
            if len(group) == 1:
                _fail(group[0][1], error)
                return
            for member in group:
                await self._write([member])
        else:
            for (_, answer), settled in zip(group, answers, strict=True):
                if not answer.done():
                    answer.set_result(settled)


def _fail(answer: asyncio.Future[Settled], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
