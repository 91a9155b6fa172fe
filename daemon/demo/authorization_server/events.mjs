// What happens in the server, one JSON line each on stdout. Tokens appear as their SHA-256 only.
// Writes to a pipe are synchronous in Node on Linux: the lines stand in the order of events.

import { createHash } from 'node:crypto';

export function emit(event, members = {}) {
  process.stdout.write(`${JSON.stringify({ event, at: Date.now() / 1000, ...members })}\n`);
}

export function digest(token) {
  return token ? createHash('sha256').update(token).digest('hex') : null;
}

/** Report every event of the provider that concerns a grant or a token. */
export function report(provider) {
  const refreshToken = (event) => (token) => emit(event, {
    refresh_token: digest(token.jti), grant: token.grantId, rotations: token.rotations ?? 0,
  });
  for (const event of ['refresh_token.saved', 'refresh_token.consumed', 'refresh_token.destroyed']) {
    provider.on(event, refreshToken(event));
  }
  provider.on('access_token.saved', (token) => emit('access_token.issued', {
    access_token: digest(token.jti), grant: token.grantId, lifetime: token.expiration,
  }));
  provider.on('access_token.destroyed', (token) => emit('access_token.destroyed', {
    access_token: digest(token.jti), grant: token.grantId,
  }));
  provider.on('grant.success', (ctx) => emit('grant.success', {
    ...request(ctx),
    grant: ctx.oidc.entities.Grant?.jti ?? null,
    access_token: digest(ctx.body.access_token),
    refresh_token: digest(ctx.body.refresh_token),
    presented_refresh_token: digest(ctx.oidc.params.refresh_token),
  }));
  provider.on('grant.error', (ctx, error) => emit('grant.error', {
    ...request(ctx), error: error.error, detail: error.error_detail ?? null,
  }));
  provider.on('grant.revoked', (_ctx, grant) => emit('grant.revoked', { grant }));
  provider.on('authorization.success', (ctx) => emit('authorization.success', request(ctx)));
  provider.on('authorization.error', (ctx, error) => emit('authorization.error', {
    ...request(ctx), error: error.error, detail: error.error_detail ?? null,
  }));
  provider.on('server_error', (_ctx, error) => {
    console.error(error);
    emit('server_error', { name: error.name });
  });
}

function request(ctx) {
  return {
    client_id: ctx.oidc?.client?.clientId ?? null,
    grant_type: ctx.oidc?.params?.grant_type ?? null,
  };
}
