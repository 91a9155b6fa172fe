"""What a test request told of a connection: whether it works, and whose account it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from daemon.domain.account import Account, is_somebody_else, verdict
from daemon.domain.connection import Connection, Status, TestResult
from daemon.domain.history import DetailValue, EventType, NewEvent
from daemon.persistence.held import holder_of, lock_account, locked_connection
from daemon.persistence.postgres import DatabaseConnection
from daemon.persistence.rows import test_value

# Longer than any test takes; another replica tests what this one has dropped.
_HOLD = timedelta(hours=1)

_STORE = """
UPDATE connections
SET last_test = coalesce($2::jsonb, last_test), last_tested_at = coalesce($3, last_tested_at),
    label = $4, account_id = $5, account_scope = $6, reply_values = reply_values || $7::jsonb,
    test_due_at = $8, updated_at = CASE WHEN $9 THEN $10 ELSE updated_at END
WHERE id = $1
"""

# What is not working has no tests of its own; its next authorization plans the next.
_CLAIM = """
UPDATE connections
SET test_due_at = CASE WHEN status IN ('active', 'failing')
                       THEN $1::timestamptz + $2::interval END
WHERE id IN (
    SELECT id FROM connections WHERE test_due_at <= $1
    ORDER BY test_due_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING id, test_due_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTest:
    """A connection after its test, who else has its account, and what there is to record."""

    connection: Connection
    conflict: str | None = None
    events: tuple[NewEvent, ...] = ()


async def claim_tests(session: DatabaseConnection, *, now: datetime, limit: int) -> list[str]:
    """Return ids whose test is due, each hidden from other replicas for an hour."""
    rows = await session.fetch(_CLAIM, now, _HOLD, limit)
    return [row["id"] for row in rows if row["test_due_at"] is not None]


async def store_test(
    session: DatabaseConnection,
    connection_id: str,
    account: Account,
    *,
    now: datetime,
    next_test_at: datetime | None,
) -> StoredTest | None:
    """Store a test in the transaction of ``session``; see ``ConnectionLife.record_test``."""
    holder = await _holder(session, connection_id, account)
    row = await session.fetchrow(
        "SELECT provider, status, label, label_is_set, account_id, account_scope"
        " FROM connections WHERE id = $1 FOR UPDATE",
        connection_id,
    )
    if row is None:
        return None
    if row["status"] == Status.DISCONNECTED:
        return StoredTest(connection=await locked_connection(session, connection_id))
    name = (row["account_id"], row["account_scope"])
    test = verdict(account, row["account_id"])
    if is_somebody_else(account, row["account_id"]):
        # Whatever else the replies said is that account's, too.
        account = Account()
    label = row["label"] if row["label_is_set"] else account.label or row["label"]
    is_ours = account.account_id is not None
    if is_ours and holder is None:
        name = (account.account_id, account.scope)
    await session.execute(
        _STORE,
        connection_id,
        None if test is None else test_value(test),
        None if test is None else test.checked_at,
        label,
        *name,
        dict(account.reply_values),
        next_test_at,
        (label, *name) != (row["label"], row["account_id"], row["account_scope"]),
        now,
    )
    return StoredTest(
        connection=await locked_connection(session, connection_id),
        conflict=holder if is_ours else None,
        events=() if test is None else (_event(connection_id, row["provider"], test, now),),
    )


async def _holder(session: DatabaseConnection, connection_id: str, account: Account) -> str | None:
    """Return who else has the account, which from here on nobody else can give away."""
    provider = await session.fetchval(
        "SELECT provider FROM connections WHERE id = $1", connection_id
    )
    if provider is None or account.account_id is None:
        return None
    place = (provider, account.scope, account.account_id)
    await lock_account(session, *place)
    return await holder_of(session, *place, beside=connection_id)


def _event(connection_id: str, provider: str, test: TestResult, at: datetime) -> NewEvent:
    detail: dict[str, DetailValue] = {"ok": test.ok, "status": test.status}
    if test.error is not None:
        detail["code"] = test.error.code
    return NewEvent(
        type=EventType.TESTED, connection=connection_id, provider=provider, at=at, detail=detail
    )
