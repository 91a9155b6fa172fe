-- major: 1
-- The first schema. Ciphertexts are AES-256-GCM bound to (connection, column, generation); see
-- daemon/persistence/cipher.py. Times are the application's wall clock, except the claim's
-- take-over time and provider_state, which replicas share and so are on the database's clock.

-- Every key that has ever encrypted here, with a ciphertext that only the right key opens.
CREATE TABLE encryption_keys (
    key_id text PRIMARY KEY,
    canary bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Identity and state of a connection: changes rarely.
CREATE TABLE connections (
    id text PRIMARY KEY,
    provider text NOT NULL,
    grant_type text NOT NULL,
    status text NOT NULL CHECK (status IN
        ('pending', 'active', 'failing', 'reauthorization_required', 'disconnected')),
    label text,
    account_id text,
    fields jsonb NOT NULL DEFAULT '{}',
    requested_scopes text[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    return_url text,
    created_by text NOT NULL,
    last_error jsonb,
    last_used_at timestamptz,
    last_tested_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX connections_provider_status ON connections (provider, status);
CREATE INDEX connections_created ON connections (created_at DESC, id DESC);

-- The current tokens: rewritten by every refresh. Access and refresh token are separate
-- ciphertexts, so that serving never decrypts a refresh token.
CREATE TABLE token_sets (
    connection_id text PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    generation bigint NOT NULL,
    access_token bytea NOT NULL,
    refresh_token bytea,
    token_type text NOT NULL,
    scopes text[] NOT NULL,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz,
    stored_at timestamptz NOT NULL
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE token_sets ALTER access_token SET STORAGE EXTERNAL;
ALTER TABLE token_sets ALTER refresh_token SET STORAGE EXTERNAL;
CREATE INDEX token_sets_expiry ON token_sets (expires_at);

-- When a connection is due and who is at it: narrow and hot. The claim's columns are in no index,
-- so that taking a claim stays a heap-only update.
CREATE TABLE refresh_schedule (
    connection_id text PRIMARY KEY REFERENCES connections (id) ON DELETE CASCADE,
    provider text NOT NULL,
    due_at timestamptz,
    state text NOT NULL DEFAULT 'idle' CHECK (state IN ('idle', 'sending', 'in_doubt')),
    owner text,
    epoch bigint NOT NULL DEFAULT 0,
    attempt text,
    take_over_at timestamptz,
    failures integer NOT NULL DEFAULT 0
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX refresh_schedule_due ON refresh_schedule (provider, due_at) WHERE due_at IS NOT NULL;

-- What the whole fleet knows of a provider: rate, pause, circuit (daemon/domain/admission.py).
CREATE TABLE provider_state (
    provider text PRIMARY KEY,
    free_at timestamptz NOT NULL DEFAULT now(),
    paused_until timestamptz,
    failures integer NOT NULL DEFAULT 0,
    circuit text
) WITH (fillfactor = 50);

-- The right to start an authorization, carried in a connect URL.
CREATE TABLE connect_tickets (
    ticket_hash bytea PRIMARY KEY,
    connection_id text NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    caller text NOT NULL,
    return_url text,
    expires_at timestamptz NOT NULL
);
CREATE INDEX connect_tickets_connection ON connect_tickets (connection_id);
CREATE INDEX connect_tickets_expiry ON connect_tickets (expires_at);

-- Authorizations between the redirect to the provider and its callback.
CREATE TABLE authorizations (
    state_hash bytea PRIMARY KEY,
    connection_id text NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    provider text NOT NULL,
    issuer text,
    token_endpoint text NOT NULL,
    redirect_uri text NOT NULL,
    code_verifier bytea,
    browser_hash bytea NOT NULL,
    scopes text[] NOT NULL,
    return_url text,
    expires_at timestamptz NOT NULL
);
CREATE INDEX authorizations_connection ON authorizations (connection_id);
CREATE INDEX authorizations_expiry ON authorizations (expires_at);
