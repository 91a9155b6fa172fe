"""[refresh] Claims of this process that it never heard of: the answer to their commit was lost.

Nobody works at such a claim, and nobody else may, until its time has passed. The hard idea: an
open claim is known to be lost once every call that was on its way when it was seen has ended, and
none of them has begun an attempt for it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from daemon.domain.claim import Abandoned
from daemon.domain.errors import DatabaseUnavailableError


class OpenClaims(Protocol):
    """What is asked of the store."""

    async def abandoned_by(self, owner: str) -> Sequence[Abandoned]:
        """Return the claims of ``owner`` whose end is not stored."""


class LostClaims:
    """Watches the calls that take claims, and finds what they have left behind."""

    def __init__(self) -> None:
        self._next = 0
        self._on_their_way: set[int] = set()
        self._may_have_lost = False
        self._suspects: Sequence[Abandoned] = ()
        # Calls below this number may have taken the suspects' claims.
        self._first_innocent = 0

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Take claims within the block, and have what they bring in flight before it ends."""
        number = self._next
        self._next += 1
        self._on_their_way.add(number)
        try:
            yield
        except DatabaseUnavailableError:
            self._may_have_lost = True
            raise
        finally:
            self._on_their_way.discard(number)

    async def find(
        self, store: OpenClaims, owner: str, in_flight: Container[str]
    ) -> Sequence[Abandoned]:
        """Return what is known to be lost, until ``forget``; later what is not known yet.

        Nothing is asked of the store unless a call has failed: it has no index for that.

        Raises:
            DatabaseUnavailableError: nothing was found out; the next call looks again.
        """
        if self._may_have_lost and not self._suspects:
            found = await store.abandoned_by(owner)
            self._may_have_lost = False
            self._suspects = [claim for claim in found if claim.attempt not in in_flight]
            self._first_innocent = self._next
        if min(self._on_their_way, default=self._next) < self._first_innocent:
            return []
        self._suspects = [claim for claim in self._suspects if claim.attempt not in in_flight]
        return self._suspects

    def forget(self) -> None:
        """Have done what was to be done about those that were found."""
        self._suspects = ()
