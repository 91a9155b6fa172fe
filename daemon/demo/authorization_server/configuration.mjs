// How oidc-provider is set up: https://github.com/panva/node-oidc-provider/tree/main/docs

import { randomBytes } from 'node:crypto';

const YEAR = 365 * 24 * 3600;

export function configuration({ clients, accessTokenLifetime, refreshTokenLifetime, rotate }, store) {
  return {
    adapter: (model) => store.adapter(model),
    clients: clients.map(registration),
    // Own names: cookies do not know ports, and something else may use the usual names on this host.
    cookies: {
      names: {
        session: 'demo_session', interaction: 'demo_interaction', resume: 'demo_resume',
      },
      keys: [randomBytes(32).toString('hex')],
    },
    claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
    scopes: ['openid', 'offline_access', 'profile', 'email', 'read', 'write'],
    findAccount: (_ctx, accountId) => ({ accountId, claims: () => person(accountId) }),
    features: {
      devInteractions: { enabled: true },
      clientCredentials: { enabled: true },
      deviceFlow: { enabled: true },
      introspection: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      revocation: { enabled: true },
    },
    pkce: { required: () => true },
    issueRefreshToken: async (_ctx, client, code) =>
      client.grantTypeAllowed('refresh_token') && code.scopes.has('offline_access'),
    expiresWithSession: () => false,
    // Strict: every use rotates, and any use of a spent token revokes the whole grant.
    rotateRefreshToken: rotate,
    ttl: {
      AccessToken: accessTokenLifetime,
      AuthorizationCode: 60,
      ClientCredentials: accessTokenLifetime,
      DeviceCode: 600,
      Grant: YEAR,
      IdToken: 3600,
      Interaction: 3600,
      RefreshToken: refreshTokenLifetime,
      Session: 14 * 24 * 3600,
    },
  };
}

function registration(client) {
  const isInteractive = client.redirect_uris.length > 0;
  return { ...client, response_types: isInteractive ? ['code'] : [] };
}

function person(accountId) {
  const name = accountId.charAt(0).toUpperCase() + accountId.slice(1);
  return {
    sub: accountId, name, email: `${accountId}@example.com`, email_verified: true,
  };
}
