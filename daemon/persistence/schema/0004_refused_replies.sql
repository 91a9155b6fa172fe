-- major: 1
-- Replies that must never be stored, and who asked for an authorization. Every change adds; the
-- version before this one can work beside it.

-- Whoever made the connect URL, for the authorization that began with it.
ALTER TABLE authorizations ADD caller text NOT NULL DEFAULT '';

-- Exchanges whose tokens were refused (another account, disconnected, gone) and are being revoked:
-- SHA-256 of connection, time and access token. A journal may still hold such a reply.
CREATE TABLE refused_replies (
    reply_hash bytea PRIMARY KEY,
    reason text NOT NULL,
    refused_at timestamptz NOT NULL
);
CREATE INDEX refused_replies_at ON refused_replies (refused_at);
