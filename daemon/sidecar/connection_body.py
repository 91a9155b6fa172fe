"""Connections as JSON: the body of contract 4. What is read from callers is in ``members``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from daemon.domain.connection import Connection


def connection_body(connection: Connection) -> dict[str, Any]:
    """Return the body of contract 4. Times are RFC 3339 in UTC. Nothing in it is secret."""
    error = connection.last_error
    return {
        "id": connection.id,
        "provider": connection.provider,
        "grant": connection.grant,
        "status": connection.status.value,
        "label": connection.label,
        "account_id": connection.account_id,
        "fields": dict(connection.fields),
        "scopes": list(connection.scopes),
        "requested_scopes": list(connection.requested_scopes),
        "metadata": dict(connection.metadata),
        "generation": connection.generation,
        "expires_at": rfc3339(connection.expires_at),
        "refresh_at": rfc3339(connection.refresh_at),
        "has_refresh_token": connection.has_refresh_token,
        "last_refreshed_at": rfc3339(connection.last_refreshed_at),
        "last_used_at": rfc3339(connection.last_used_at),
        "last_tested_at": rfc3339(connection.last_tested_at),
        "last_error": error
        and {"code": error.code, "description": error.description, "at": rfc3339(error.at)},
        "created_at": rfc3339(connection.created_at),
        "updated_at": rfc3339(connection.updated_at),
    }


def rfc3339(moment: datetime | None) -> str | None:
    """Return ``2026-11-21T18:00:00Z``; ``None`` stays ``None``."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
