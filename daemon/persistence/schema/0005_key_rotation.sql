-- major: 1
-- Encryption keys that are known before they encrypt, and which keys each replica has. Every change
-- adds; the version before this one can work beside it: a key that it adds is in use.

-- ``in_use``: something may be encrypted with the key, so nobody may start without it. A key that
-- was announced only, or from which everything was rotated away, is not.
ALTER TABLE encryption_keys ADD in_use boolean NOT NULL DEFAULT true;

-- What each replica says of its keys; the row goes when it stops in order. ``key_ids``: in the
-- order of its configuration. ``encrypts``: those whose ciphertexts may still arrive from it.
-- ``journal_keys``: those that records of its journal need. Database's clock.
CREATE TABLE replica_keys (
    owner text PRIMARY KEY,
    key_ids text[] NOT NULL,
    encrypts text[] NOT NULL,
    journal_keys text[] NOT NULL,
    seen_at timestamptz NOT NULL
) WITH (fillfactor = 50);
