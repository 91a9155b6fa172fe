"""Replies as the journal keeps them."""

from __future__ import annotations

from datetime import UTC, datetime

from daemon.domain.journal import JournaledReply, Purpose
from daemon.domain.reply import RawReply


def entry(number: int) -> JournaledReply:
    """Return the reply to an attempt of its own."""
    return JournaledReply(
        attempt=f"attempt-{number}",
        purpose=Purpose.REFRESH,
        connection_id="acme-1",
        provider="acme",
        generation=7,
        scopes=("read",),
        sent_at=datetime(2026, 11, 21, 18, 0, tzinfo=UTC),
        reply=RawReply(status=200, headers={}, body=b'{"refresh_token": "next"}'),
    )
