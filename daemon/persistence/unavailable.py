"""The one place where asyncpg's errors are told apart (PostgreSQL manual, appendix A).

Its hard idea: an error says something about the statement, about the connection, or about the
server. Only the last makes every other pooled connection suspect: after a failover the old
primary goes on answering reads, so a pool that keeps its connections never recovers.
"""

from __future__ import annotations

from enum import Enum, auto

import asyncpg

from daemon.domain.errors import DatabaseUnavailableError


class Severity(Enum):
    """What an error means for those who use the database."""

    LOST = auto()
    """This server cannot be used any more: every connection to it must go."""
    BUSY = auto()
    """This statement could not be done now; other connections are not concerned."""
    CONFLICT = auto()
    """Rolled back because of a concurrent transaction: the same one may succeed at once."""


_LOST = (
    "25006",  # read_only_sql_transaction: the old primary after a failover
    "57P",  # the server ends our connections, stops or starts, or the database was dropped
    "08",  # connection exceptions
)
_CONFLICT = (
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
)
_BUSY = (
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "28",  # authorization: at connect only
    "3D000",  # the database does not exist: at connect only
    "40",  # other rollbacks, completion unknown included
    "53",  # out of connections, memory or disk
    "55P03",  # lock_not_available
    "57014",  # query_canceled: statement_timeout
    "58",  # system errors, such as I/O
    "XX",  # internal errors, such as a damaged index
)
# InterfaceError has no code, and the same class also stands for misuse of the API.
_GONE = ("closed", "closing", "released back to the pool")

LIBRARY_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""What asyncpg raises; ``OSError`` includes ``TimeoutError``."""


def classify(error: BaseException) -> Severity | None:
    """Tell what ``error`` means; ``None`` for one that repeating will not change.

    Those are for the caller to handle: a violated constraint, a value of the wrong type, a
    mistake in a statement.
    """
    if isinstance(error, asyncpg.PostgresError):
        return _by_code(error.sqlstate or "")
    if isinstance(error, asyncpg.InterfaceError):
        return Severity.LOST if any(word in str(error) for word in _GONE) else None
    if isinstance(error, asyncpg.InternalClientError | OSError):
        return Severity.LOST
    return None


def _by_code(sqlstate: str) -> Severity | None:
    if sqlstate.startswith(_LOST):
        return Severity.LOST
    if sqlstate in _CONFLICT:
        return Severity.CONFLICT
    return Severity.BUSY if sqlstate.startswith(_BUSY) else None


def is_conflict(error: BaseException) -> bool:
    """Tell whether ``error`` is, or was raised from, a conflict of concurrent transactions."""
    cause = error.__cause__ if isinstance(error, DatabaseUnavailableError) else error
    return cause is not None and classify(cause) is Severity.CONFLICT


def unavailable(error: BaseException) -> DatabaseUnavailableError:
    """Return the error to raise from ``error``: what happened, without statement or values."""
    if isinstance(error, TimeoutError):
        text = "it did not answer in time"
    elif isinstance(error, asyncpg.PostgresError):
        text = f"{error.args[0] if error.args else type(error).__name__} ({error.sqlstate})"
    else:
        text = str(error) or type(error).__name__
    return DatabaseUnavailableError(f"the database cannot be used right now: {text}")
