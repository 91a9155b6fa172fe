-- major: 1
-- Since when the fate of a refresh token may be unknown. The change adds; the version before this
-- one can work beside it.

-- When the first request was claimed whose end is not stored, on its claimant's clock: a provider's
-- grace runs from there, however often the same refresh token is sent after it.
ALTER TABLE refresh_schedule ADD doubted_since timestamptz;
