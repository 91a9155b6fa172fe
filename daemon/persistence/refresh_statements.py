"""The statements of claims. ``refreshes`` says when each runs and why."""

from __future__ import annotations

from daemon.persistence.incarnations import INCARNATION

LOCK_PROVIDERS = f"""
SELECT provider, free_at, paused_until, failures, circuit, clock_timestamp() AS now,
       {INCARNATION} AS incarnation
FROM provider_state WHERE provider = ANY($1::text[]) ORDER BY provider FOR UPDATE
"""

STORE_PROVIDER = """
UPDATE provider_state SET free_at = $2, paused_until = $3, failures = $4, circuit = $5
WHERE provider = $1
"""

# One range scan of the due index for each provider: a paused provider's backlog is never read.
CLAIM_DUE = """
WITH picked AS (
    SELECT r.* FROM unnest($1::text[], $2::int[]) AS room (provider, places)
    CROSS JOIN LATERAL (
        SELECT connection_id, state, due_at FROM refresh_schedule
        WHERE provider = room.provider AND due_at <= $3 AND state <> 'sending'
          AND (take_over_at IS NULL OR take_over_at <= clock_timestamp())
        ORDER BY due_at LIMIT room.places FOR UPDATE SKIP LOCKED
    ) r
)
UPDATE refresh_schedule s
SET state = 'sending', owner = $4, epoch = epoch + 1, attempt = gen_random_uuid()::text,
    take_over_at = clock_timestamp() + $5,
    doubted_since = CASE WHEN s.state = 'in_doubt' THEN coalesce(s.doubted_since, $3) ELSE $3 END
FROM picked WHERE s.connection_id = picked.connection_id
RETURNING s.connection_id, s.provider, s.attempt, s.failures, s.doubted_since,
          picked.state AS state, picked.due_at AS due_at
"""

LOCK_WANTED = """
SELECT connection_id, provider, state, due_at, failures, attempt, doubted_since,
       coalesce(take_over_at > clock_timestamp(), false) AS rests
FROM refresh_schedule WHERE connection_id = $1 FOR UPDATE
"""

# Always a statement of its own, after the schedule's row is locked: a join in the locking
# statement would show the tokens as they were before the wait for that lock, and a spent refresh
# token would be sent.
READ_CLAIMED = """
SELECT c.id AS connection_id, c.status, c.requested_scopes, c.fields, c.reply_values, c.epoch,
       t.generation, t.access_token, t.refresh_token, t.token_type, t.scopes, t.issued_at,
       t.expires_at, t.granted_at
FROM connections c JOIN token_sets t ON t.connection_id = c.id
WHERE c.id = ANY($1::text[])
"""

# The due time moves to now, so that a vanished owner's claim is found by the due index.
CLAIM_WANTED = """
UPDATE refresh_schedule
SET state = 'sending', owner = $2, epoch = epoch + 1, attempt = gen_random_uuid()::text,
    take_over_at = clock_timestamp() + $3, due_at = least(coalesce(due_at, $4), $4),
    doubted_since = CASE WHEN state = 'in_doubt' THEN coalesce(doubted_since, $4) ELSE $4 END
WHERE connection_id = $1 RETURNING attempt
"""

PUT_ASIDE = """
WITH aside AS (
    UPDATE refresh_schedule
    SET state = $4, attempt = NULL, due_at = $2, failures = failures + 1, owner = NULL,
        take_over_at = NULL
    WHERE connection_id = $1
)
UPDATE connections SET status = 'failing', last_error = $3::text::jsonb, updated_at = now()
WHERE id = $1
"""

ABANDONED = """
SELECT s.connection_id, s.provider, s.attempt, s.failures, t.generation, t.issued_at, t.expires_at,
       s.doubted_since, clock_timestamp() - s.take_over_at AS overdue
FROM refresh_schedule s JOIN token_sets t ON t.connection_id = s.connection_id
WHERE s.provider = ANY($1::text[]) AND s.due_at <= $2 AND s.state = 'sending'
  AND s.take_over_at < clock_timestamp()
LIMIT 500
"""

# Only at a start: no index for it, and none is missed.
ABANDONED_BY = """
SELECT s.connection_id, s.provider, s.attempt, s.failures, t.generation, t.issued_at, t.expires_at,
       s.doubted_since, clock_timestamp() - s.take_over_at AS overdue
FROM refresh_schedule s JOIN token_sets t ON t.connection_id = s.connection_id
WHERE s.owner = $1 AND s.state = 'sending'
"""

RECLAIM = """
UPDATE refresh_schedule
SET state = 'sending', attempt = $2, owner = $3, epoch = epoch + 1,
    take_over_at = clock_timestamp() + $4
WHERE connection_id = $1
"""

NEXT_DUE = """
SELECT min(due_at) FROM unnest($1::text[]) AS wanted (provider)
CROSS JOIN LATERAL (
    SELECT due_at FROM refresh_schedule
    WHERE provider = wanted.provider AND due_at > $2 ORDER BY due_at LIMIT 1
) soonest
"""
