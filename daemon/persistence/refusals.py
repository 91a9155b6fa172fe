"""Replies that were refused, so that none of them is ever stored later.

The journal may still hold one: where the process died before it could note the refusal there, the
next start would find tokens that fit their connection, and no longer know that they are another
account's.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from daemon.domain.authorization import Completion, NotStored, NotStoredReason
from daemon.persistence.postgres import DatabaseConnection


async def refusal_of(session: DatabaseConnection, completion: Completion) -> NotStored | None:
    """Return how this very reply was answered before, if it was refused."""
    reason = await session.fetchval(
        "SELECT reason FROM refused_replies WHERE reply_hash = $1", _hash_of(completion)
    )
    return None if reason is None else NotStored(reason=NotStoredReason(reason))


async def note_refusal(
    session: DatabaseConnection, completion: Completion, answer: NotStored, *, now: datetime
) -> None:
    """Remember a refusal, in the transaction that queues its tokens for revocation."""
    if answer.reason is NotStoredReason.SUPERSEDED:
        return
    await session.execute(
        "INSERT INTO refused_replies (reply_hash, reason, refused_at) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING",
        _hash_of(completion),
        answer.reason.value,
        now,
    )


def _hash_of(completion: Completion) -> bytes:
    """Return what a reply is known by: as for ``is_same_reply``, its token and its time."""
    tokens = completion.tokens
    parts = (completion.connection_id, tokens.issued_at.isoformat(), tokens.access_token)
    return hashlib.sha256("\n".join(parts).encode()).digest()
