"""[refresh] For a process that only serves: what a caller needs now is asked of those that refresh.

The hard idea: nothing is sent from here, so nothing can be lost here. The connection is marked due
in the database, which is certain, and those that refresh are told, which is quick and gives the
waiting caller its turn before a backlog. Then memory is watched for the new generation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from daemon.config.settings import Refresh
from daemon.domain.claim import Refusal, RefusalReason
from daemon.domain.claimable import Wanted
from daemon.domain.clock import Clock
from daemon.refresh.cache import TokenCache
from daemon.refresh.memory import Memory
from daemon.refresh.ports import Asks

# How often the row is looked at, should a notification get lost.
_LOOK_AGAIN = 0.5
# Who refreshes takes an ask up within milliseconds. Where nobody has for so long, nobody is there
# or the provider's rate is used up: the caller is told instead of being kept.
_TAKEN_WITHIN = 5.0
_SAYS_MORE_THAN_MEMORY = {
    RefusalReason.SUPERSEDED,
    RefusalReason.NOT_REFRESHABLE,
    RefusalReason.UNKNOWN,
    RefusalReason.BACKING_OFF,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingPorts:
    """What asking works with. ``tell`` lets those that refresh hear of what is wanted."""

    store: Asks
    tell: Callable[[Wanted], None]
    clock: Clock
    settings: Callable[[], Refresh]


class Asking:
    """Has refreshes done by others, at most one ask at a time for each connection."""

    def __init__(self, ports: AskingPorts, *, cache: TokenCache, memory: Memory) -> None:
        self._ports = ports
        self._cache = cache
        self.memory = memory
        self._asks: dict[str, tuple[int, asyncio.Task[Refusal | None]]] = {}
        self._closing = False

    async def refresh(self, wanted: Wanted) -> Refusal | None:
        """Return once a newer generation is in memory, or why none has come.

        All who want the same of one connection wait for one ask. Cancelling the wait cancels
        nothing.

        Raises:
            DatabaseUnavailableError: nobody could be asked.
        """
        while True:
            generation, task = self._asks.get(wanted.connection_id, (-1, None))
            if task is None or task.done():
                generation, task = wanted.generation, self._begin(wanted)
            refusal = await asyncio.shield(task)
            if generation >= wanted.generation:
                return refusal

    async def drain(self) -> None:
        """Ask nothing more; return when nobody waits any more, which is soon."""
        self._closing = True
        while self._asks:
            await asyncio.wait([task for _, task in self._asks.values()])

    def _begin(self, wanted: Wanted) -> asyncio.Task[Refusal | None]:
        connection_id = wanted.connection_id
        task = asyncio.create_task(self._ask(wanted), name=f"ask {connection_id}")
        self._asks[connection_id] = (wanted.generation, task)

        def ended(done: asyncio.Task[Refusal | None]) -> None:
            if self._asks.get(connection_id, (0, None))[1] is done:
                del self._asks[connection_id]
            if not done.cancelled():
                # Looked at, also where everybody who waited has gone.
                done.exception()

        task.add_done_callback(ended)
        return task

    async def _ask(self, wanted: Wanted) -> Refusal | None:
        clock = self._ports.clock
        began = clock.boottime()
        give_up = began + self._ports.settings().request_timeout.total_seconds()
        taken = False
        while not self._closing:
            changed = self._cache.changed(wanted.connection_id)
            try:
                answer = await self._ports.store.ask(wanted, now=clock.now())
                if answer is not None and answer.reason is not RefusalReason.SENDING:
                    return await self._refused(answer)
                taken = taken or answer is not None
                if answer is None:
                    self._ports.tell(wanted)
                now = clock.boottime()
                if now >= give_up or (not taken and now >= began + _TAKEN_WITHIN):
                    return self._not_taken(wanted) if answer is None else answer
                await self._first_of(changed, _LOOK_AGAIN)
            finally:
                changed.cancel()
            entry = self._cache.get(wanted.connection_id)
            if entry is not None and entry.generation > wanted.generation:
                return None
        return self._not_taken(wanted)

    async def _refused(self, answer: Refusal) -> Refusal | None:
        """Read what memory does not know yet, where the refusal says that there is something."""
        if answer.reason in _SAYS_MORE_THAN_MEMORY:
            await self.memory.reload([answer.connection_id])
        return None if answer.reason is RefusalReason.SUPERSEDED else answer

    def _not_taken(self, wanted: Wanted) -> Refusal:
        return Refusal(
            connection_id=wanted.connection_id,
            reason=RefusalReason.NOT_TAKEN_UP,
            retry_at=self._ports.clock.now() + timedelta(seconds=_TAKEN_WITHIN),
        )

    async def _first_of(self, changed: asyncio.Future[None], seconds: float) -> None:
        sleep = asyncio.ensure_future(self._ports.clock.sleep(seconds))
        try:
            await asyncio.wait({changed, sleep}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
