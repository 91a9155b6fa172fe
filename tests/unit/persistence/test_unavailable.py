"""What each error of the database means."""

from __future__ import annotations

import ssl

import asyncpg
import pytest

from daemon.domain.errors import DatabaseUnavailableError
from daemon.persistence.unavailable import Severity, classify, is_conflict, unavailable


def server_error(sqlstate: str) -> asyncpg.PostgresError:
    """Return the error that asyncpg raises for ``sqlstate``."""
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "said the server", "D": "rt-hush"})
    assert isinstance(error, asyncpg.PostgresError)
    return error


@pytest.mark.parametrize(
    ("sqlstate", "severity"),
    [
        ("25006", Severity.LOST),
        ("57P01", Severity.LOST),
        ("57P02", Severity.LOST),
        ("57P03", Severity.LOST),
        ("57P04", Severity.LOST),
        ("08000", Severity.LOST),
        ("08003", Severity.LOST),
        ("08006", Severity.LOST),
        ("08P01", Severity.LOST),
        ("40001", Severity.CONFLICT),
        ("40P01", Severity.CONFLICT),
        ("40003", Severity.BUSY),
        ("25P03", Severity.BUSY),
        ("25P04", Severity.BUSY),
        ("28P01", Severity.BUSY),
        ("3D000", Severity.BUSY),
        ("53100", Severity.BUSY),
        ("53300", Severity.BUSY),
        ("55P03", Severity.BUSY),
        ("57014", Severity.BUSY),
        ("58030", Severity.BUSY),
        ("XX001", Severity.BUSY),
        ("23505", None),
        ("22001", None),
        ("42P01", None),
        ("25P02", None),
    ],
)
def test_sqlstate_decides(sqlstate: str, severity: Severity | None) -> None:
    """Each SQLSTATE concerns the server, the statement, a concurrent one, or our own mistake."""
    assert classify(server_error(sqlstate)) is severity


@pytest.mark.parametrize(
    ("error", "severity"),
    [
        (ConnectionRefusedError(111, "refused"), Severity.LOST),
        (TimeoutError(), Severity.LOST),
        (FileNotFoundError(2, "no socket"), Severity.LOST),
        (ssl.SSLError("handshake"), Severity.LOST),
        (asyncpg.ConnectionDoesNotExistError("connection was closed"), Severity.LOST),
        (asyncpg.InterfaceError("connection is closed"), Severity.LOST),
        (asyncpg.InterfaceError("pool is closing"), Severity.LOST),
        (asyncpg.TargetServerAttributeNotMatched("no primary"), Severity.LOST),
        (asyncpg.InterfaceError("another operation is in progress"), None),
        (asyncpg.DataError("invalid input for query argument $1"), None),
        (ValueError("ours"), None),
    ],
)
def test_errors_without_sqlstate(error: Exception, severity: Severity | None) -> None:
    """Network errors and closed connections mean the server is lost; misuse does not."""
    assert classify(error) is severity


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "did not answer in time"),
        (ConnectionRefusedError(111, "refused"), "refused"),
        (server_error("53300"), "53300"),
        (OSError(), "OSError"),
    ],
)
def test_the_translated_error_says_what_happened(error: Exception, said: str) -> None:
    """The text names the cause but never the detail, which may quote a row."""
    text = str(unavailable(error))
    assert said in text
    assert "hush" not in text


def test_a_conflict_is_seen_through_its_translation() -> None:
    """A translated serialization failure still counts as one; others do not."""
    conflict = DatabaseUnavailableError("x")
    conflict.__cause__ = server_error("40001")
    assert is_conflict(conflict)
    assert is_conflict(server_error("40P01"))
    assert not is_conflict(DatabaseUnavailableError("x"))
    assert not is_conflict(server_error("57014"))
