"""Between rows and domain values: the one place that knows both, with the tokens' encryption."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import orjson

from daemon.domain.connection import Connection, Failure, Status, TestResult
from daemon.domain.errors import DecryptionError
from daemon.domain.tokens import CurrentToken, TokenSet
from daemon.persistence.cipher import TokenCipher

# Columns are named one by one wherever rows are read: beside a newer version tables have columns
# that this one does not know, and PostgreSQL refuses a prepared ``*`` whose columns have changed.
SELECT_CONNECTION = """
SELECT c.id, c.provider, c.grant_type, c.status, c.label, c.label_is_set, c.account_id,
       c.account_scope, c.fields, c.reply_values, c.requested_scopes, c.metadata, c.return_url,
       c.created_by, c.epoch, c.last_error, c.last_test, c.last_used_at, c.last_tested_at,
       c.created_at, c.updated_at, t.generation, t.scopes, t.expires_at, t.stored_at,
       t.refresh_token IS NOT NULL AS has_refresh_token, s.due_at
FROM connections c
LEFT JOIN token_sets t ON t.connection_id = c.id
LEFT JOIN refresh_schedule s ON s.connection_id = c.id
"""


class Row(Protocol):
    """A row, or anything that is read by column name."""

    def __getitem__(self, column: str, /) -> Any:
        """Return a column's value."""


def seal_tokens(
    cipher: TokenCipher, connection: str, tokens: TokenSet
) -> tuple[bytes, bytes | None]:
    """Return the ciphertexts of access and refresh token, bound to their place."""
    access = cipher.encrypt(
        tokens.access_token,
        connection=connection,
        column="access_token",
        generation=tokens.generation,
    )
    if tokens.refresh_token is None:
        return access, None
    refresh = cipher.encrypt(
        tokens.refresh_token,
        connection=connection,
        column="refresh_token",
        generation=tokens.generation,
    )
    return access, refresh


def token_set(row: Row, cipher: TokenCipher) -> TokenSet:
    """Return the tokens of a row of ``token_sets`` joined with its connection id.

    Raises:
        DecryptionError: a ciphertext was moved, changed, or its key is not in the keyring.
    """
    place = {"connection": row["connection_id"], "generation": row["generation"]}
    refresh = row["refresh_token"]
    return TokenSet(
        generation=row["generation"],
        access_token=cipher.decrypt(row["access_token"], column="access_token", **place),
        refresh_token=None
        if refresh is None
        else cipher.decrypt(refresh, column="refresh_token", **place),
        token_type=row["token_type"],
        scopes=tuple(row["scopes"]),
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
    )


def readable_tokens(row: Row, cipher: TokenCipher) -> tuple[TokenSet | None, bool]:
    """Return what ``token_set`` does, less what cannot be decrypted, and whether all could.

    ``None`` where there are no tokens: erased, or none that opens.
    """
    place = {"connection": row["connection_id"], "generation": row["generation"]}
    opened: dict[str, str | None] = {}
    is_readable = True
    for column in ("access_token", "refresh_token"):
        sealed = row[column]
        try:
            opened[column] = sealed and cipher.decrypt(sealed, column=column, **place)
        except DecryptionError:
            opened[column], is_readable = None, False
    if not any(opened.values()):
        return None, is_readable
    return TokenSet(
        generation=row["generation"],
        access_token=opened["access_token"] or "",
        refresh_token=opened["refresh_token"],
        token_type=row["token_type"],
        scopes=tuple(row["scopes"]),
        issued_at=row["issued_at"],
        expires_at=row["expires_at"],
    ), is_readable


def current_token(row: Row, cipher: TokenCipher) -> CurrentToken:
    """Return what serving needs of a joined row; the refresh token stays sealed.

    A token that does not decrypt is no token, and the failure says why.
    """
    access, trouble = _access_token(row, cipher)
    failing = row["status"] != Status.ACTIVE and row["last_error"] is not None
    return CurrentToken(
        connection=row["id"],
        provider=row["provider"],
        status=Status(row["status"]),
        generation=row["generation"] or 0,
        access_token=access,
        token_type=row["token_type"] or "Bearer",
        scopes=tuple(row["scopes"] or ()),
        issued_at=row["issued_at"] or row["created_at"],
        expires_at=row["expires_at"],
        refreshable=bool(row["has_refresh_token"]),
        failure=trouble or (row["last_error"]["description"] if failing else None),
        failure_code=row["last_error"]["code"] if failing and trouble is None else None,
        retry_at=row["due_at"] if failing else None,
    )


def _access_token(row: Row, cipher: TokenCipher) -> tuple[str, str | None]:
    sealed = row["access_token"]
    if sealed is None:
        return "", None
    try:
        return cipher.decrypt(
            sealed, connection=row["id"], column="access_token", generation=row["generation"]
        ), None
    except DecryptionError as error:
        return "", str(error)


def connection_value(row: Row) -> Connection:
    """Return the connection of a row as ``SELECT_CONNECTION`` selects it."""
    return Connection(
        id=row["id"],
        provider=row["provider"],
        grant=row["grant_type"],
        status=Status(row["status"]),
        label=row["label"],
        account_id=row["account_id"],
        fields=row["fields"],
        scopes=tuple(row["scopes"] or ()),
        requested_scopes=tuple(row["requested_scopes"]),
        metadata=row["metadata"],
        generation=row["generation"] or 0,
        expires_at=row["expires_at"],
        refresh_at=row["due_at"] if row["has_refresh_token"] else None,
        has_refresh_token=bool(row["has_refresh_token"]),
        last_refreshed_at=row["stored_at"],
        last_used_at=row["last_used_at"],
        last_tested_at=row["last_tested_at"],
        last_error=_failure(row["last_error"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        return_url=row["return_url"],
        created_by=row["created_by"],
        reply_values=row["reply_values"],
        last_test=_test_result(row["last_test"]),
    )


def failure_json(failure: Failure | None) -> str | None:
    """Return a failure as the JSON text that is stored."""
    return None if failure is None else orjson.dumps(failure).decode()


def failure_value(failure: Failure) -> dict[str, Any]:
    """Return a failure as the JSON value that is stored."""
    value: dict[str, Any] = orjson.loads(orjson.dumps(failure))
    return value


def test_value(test: TestResult) -> dict[str, Any]:
    """Return a test's result as the JSON value that is stored."""
    value: dict[str, Any] = orjson.loads(orjson.dumps(test))
    return value


def _test_result(value: Mapping[str, Any] | None) -> TestResult | None:
    if value is None:
        return None
    return TestResult(
        ok=value["ok"],
        status=value["status"],
        checked_at=datetime.fromisoformat(value["checked_at"]),
        error=_failure(value["error"]),
    )


def _failure(value: Mapping[str, str] | None) -> Failure | None:
    if value is None:
        return None
    return Failure(
        code=value["code"],
        description=value["description"],
        at=datetime.fromisoformat(value["at"]),
    )
