"""A caller's request body on its way to an API: streamed, and kept as long as it is small.

The one hard idea: a body can be sent again only while nothing of it was thrown away. Up to a
bound every chunk that passes is kept; beyond it none is, and there is no second try.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from aiohttp import StreamReader, web

from daemon.domain.errors import Problem


class CallerError(Exception):
    """The caller's side of a body failed: it left, stalled, or broke its framing.

    ``problem`` is the answer, ``None`` where nobody is left to read one.
    """

    def __init__(self, problem: Problem | None) -> None:
        super().__init__("the caller's body did not arrive")
        self.problem = problem


class Deadline:
    """The time that an API has for its answer to begin, counted anew with each part of the body.

    A context manager that raises ``TimeoutError``; the methods do nothing once it is left.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(seconds)
        self._is_on = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._is_on = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._is_on = False
        await self._timeout.__aexit__(kind, error, at)

    def pause(self) -> None:
        """Stop counting."""
        self._set(None)

    def restart(self) -> None:
        """Count from now."""
        self._set(self._loop.time() + self._seconds)

    def _set(self, when: float | None) -> None:
        if self._is_on and not self._timeout.expired():
            self._timeout.reschedule(when)


class Spool:
    """One request body. ``idle`` (seconds) is how long its next bytes may take.

    ``before_first`` is awaited once, before the first byte is asked for: a caller that waits for
    ``100 Continue`` (RFC 9110 10.1.1) is told so only then.
    """

    def __init__(
        self,
        source: StreamReader,
        *,
        bound: int,
        idle: float,
        before_first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._source = source
        self._bound = bound
        self._idle = idle
        self._before_first = before_first
        self._kept = bytearray()
        self._is_whole = True
        # A first try that was given up may still be waiting for bytes when the second begins.
        self._reading = asyncio.Lock()
        self.failure: CallerError | None = None

    @property
    def is_replayable(self) -> bool:
        """Tell whether everything that was read is still here."""
        return self._is_whole and self.failure is None

    @property
    def kept(self) -> bytes:
        """Return what is kept, from the beginning."""
        return bytes(self._kept)

    def arrived(self) -> bytes | None:
        """Return the whole body where all of it is here already, or was read before."""
        if self._before_first is not None or not (self._is_whole and self._source.is_eof()):
            return None
        self._kept += self._source.read_nowait()
        return bytes(self._kept)

    async def read(self) -> bytes | None:
        """Return the whole body; ``None`` where it is longer than the bound, its beginning kept.

        Raises:
            CallerError: it did not arrive.
        """
        while len(self._kept) <= self._bound:
            chunk = await self._next()
            if not chunk:
                return bytes(self._kept)
            self._kept += chunk
        return None

    async def chunks(self, deadline: Deadline) -> AsyncIterator[bytes]:
        """Yield the body from its beginning. While the caller is waited for, ``deadline`` is not.

        Raises:
            CallerError: the rest did not arrive. The failure is kept, too: aiohttp wraps it.
        """
        if self._kept:
            yield bytes(self._kept)
        while True:
            deadline.pause()
            chunk = await self._next()
            deadline.restart()
            if not chunk:
                return
            self._keep(chunk)
            yield chunk

    def _keep(self, chunk: bytes) -> None:
        if not self._is_whole:
            return
        if len(self._kept) + len(chunk) > self._bound:
            self._is_whole = False
            self._kept = bytearray()
        else:
            self._kept += chunk

    async def _next(self) -> bytes:
        """Return the next bytes; empty at the end."""
        try:
            async with self._reading, asyncio.timeout(self._idle):
                if self._before_first is not None:
                    before_first, self._before_first = self._before_first, None
                    await before_first()
                return await self._source.readany()
        except TimeoutError as error:
            raise self._failed(_stalled(self._idle)) from error
        except web.RequestPayloadError as error:
            raise self._failed(_malformed()) from error
        except OSError as error:
            raise self._failed(None) from error

    def _failed(self, problem: Problem | None) -> CallerError:
        self.failure = CallerError(problem)
        return self.failure


def _stalled(idle: float) -> Problem:
    return Problem(
        408,
        "request_timeout",
        f"No further part of the body arrived within {idle:g} seconds. What was sent of it to the "
        "API was cut off there.",
    )


def _malformed() -> Problem:
    return Problem(
        400, "bad_request", "The body does not follow its Transfer-Encoding or Content-Length."
    )
