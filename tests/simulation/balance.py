"""The end of a run: everything is at rest, and the books are balanced."""

from __future__ import annotations

import re

from daemon.domain.claim import ClaimState
from daemon.domain.connection import Status
from tests.simulation.books import LATE, Books
from tests.simulation.provider_model import Family
from tests.support.memory_refreshes import MemoryRow

_TOKEN = re.compile(rb"[AR]T-F[0-9]+-[0-9]")
_GIVEN_UP = Status.REAUTHORIZATION_REQUIRED
_TERMINAL = frozenset({Status.DISCONNECTED, _GIVEN_UP})


def is_at_rest(books: Books) -> bool:
    """Tell whether every connection is idle and well, or has ended (PO8)."""
    return all(
        row.state is ClaimState.IDLE and (row.status is Status.ACTIVE or row.status in _TERMINAL)
        for row in books.rows.values()
    )


def balance(books: Books) -> None:
    """Hold what is stored against the provider's truth."""
    for row in books.rows.values():
        if row.status is Status.DISCONNECTED:
            _check_erased(books, row)
        elif row.tokens.refresh_token is not None:
            _check_stored(books, row, row.tokens.refresh_token)
    _check_revocations(books)
    _check_secrets(books)


def _check_erased(books: Books, row: MemoryRow) -> None:
    if row.tokens.refresh_token is not None or row.tokens.access_token:
        books.trace.fail("PO9", f"{row.id} is disconnected and has tokens")


def _check_stored(books: Books, row: MemoryRow, value: str) -> None:
    """The stored refresh token is the provider's live one, or it is known where it was lost."""
    family = books.provider.by_token[value]
    if row.status is Status.REAUTHORIZATION_REQUIRED:
        _check_dead(books, row, family)
        return
    if family.is_displaced(value):
        _check_displaced(books, row, family)
        return
    if family.accepts(value, books.now()) or family.revoked_by_user:
        return
    excuse = _excuse(books, family)
    if excuse is None:
        books.trace.fail("PO3", f"{row.id}: {value} is stored and is not the live one")
    books.trace.count(f"excused at the end: {excuse}")


def _check_dead(books: Books, row: MemoryRow, family: Family) -> None:
    """A person is asked only where the grant has really ended, and is told why."""
    code = "" if row.last_error is None else row.last_error.code
    if family.is_alive and family.is_displaced(row.tokens.refresh_token or ""):
        _check_displaced(books, row, family)
        return
    if family.is_alive:
        books.trace.fail("PO3", f"{row.id} is given up ({code}) and its grant lives")
    if family.revoked_by_user and not family.reused:
        books.trace.count("end: revoked at the provider")
        return
    books.trace.count(f"end: {code}")
    excuse = _excuse(books, family)
    if excuse is None:
        books.trace.fail("PO3", f"{row.id}: its grant was ended by a reuse ({code})")
    # Late at the provider, or where a failover may have hidden that anything was sent, its end is
    # news to us, as a revocation would be.
    is_news = excuse == LATE or books.has_failed_over
    if code != "reply_lost" and not is_news:
        books.trace.fail("PO3", f"{row.id}: a lost reply is reported as {code}")


def _check_displaced(books: Books, row: MemoryRow, family: Family) -> None:
    """Another successor is the one in force: it is kept as an orphan, or it is known why not."""
    newest = family.replies[-1]
    if newest.refresh_token in books.orphaned and row.status is not _GIVEN_UP:
        books.trace.count("end: an orphan is the one in force")
        return
    excuse = books.excused.get(family.name) or books.excuse(newest, books.now())
    if excuse is None:
        books.trace.fail("PO3", f"{row.id}: {newest.refresh_token} is in force and not kept")
    books.trace.count(f"excused at the end: passed over, {excuse}")


def _excuse(books: Books, family: Family) -> str | None:
    """Return what excuses the end of a family: where a reply was lost that was in force."""
    wanted = family.reused or [
        token.value for token in family.tokens.values() if token.spent_at is not None
    ]
    known = books.excused.get(family.name)
    if known is not None:
        return known
    for value in wanted:
        spender = family.spender(value)
        excuse = None if spender is None else books.excuse(spender, books.now())
        if excuse is not None:
            return excuse
    return None


def _check_revocations(books: Books) -> None:
    """What a disconnect has overtaken is queued for revocation."""
    for family in books.provider.families:
        # One token of a grant revoked is the grant revoked (RFC 7009 2.1).
        is_revoked = not books.revoked.isdisjoint(family.tokens)
        if is_revoked or family.name not in books.disconnected_at:
            continue
        for reply in family.replies:
            token = family.tokens[reply.refresh_token]
            is_safe = reply.was_stored or (
                reply.kept_on is not None and reply.kept_volume == reply.kept_on.volume
            )
            if token.is_displaced:
                continue
            if token.spent_at is None and is_safe and token.value not in books.revoked:
                if reply.is_rolled_back or not family.is_alive:
                    continue
                books.trace.fail("PO9", f"{token.value} outlives its disconnect")


def _check_secrets(books: Books) -> None:
    for machine in books.machines:
        if machine.disk.holds(_TOKEN):
            books.trace.fail("PO10", f"a token lies open on the disk of {machine.name}")
