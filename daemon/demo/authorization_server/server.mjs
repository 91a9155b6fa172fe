// An authorization server on loopback, made of oidc-provider, spoken to in JSON lines: the first
// line of stdin is its configuration, every further line a command; stdout carries what happened.
// It ends when stdin does, so it cannot outlive the process that started it.

import { Console } from 'node:console';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

import { configuration } from './configuration.mjs';
import { emit, report } from './events.mjs';
import { Faults, tokenRequests } from './faults.mjs';
import { Store } from './store.mjs';

// The pages' style sheet asks a font server: nothing of a local demonstration leaves the machine.
const CONTENT_SECURITY_POLICY = "style-src 'unsafe-inline'; font-src 'none'";

const PARENT_CHECK_MS = 1000;

// The library gives notices on stdout, which here belongs to events.
globalThis.console = new Console(process.stderr, process.stderr);

async function main() {
  // A second line of defence: some other process may hold our stdin's other end open.
  const parent = process.ppid;
  setInterval(() => process.ppid === parent || process.exit(0), PARENT_CHECK_MS).unref();
  const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const settings = JSON.parse((await lines.next()).value);
  const server = createServer();
  server.on('error', (error) => fail(error.code ?? error.message));
  server.listen(settings.port, '127.0.0.1', async () => {
    try {
      const issuer = `http://${settings.issuerHost}:${server.address().port}`;
      const parts = await serve(server, issuer, settings);
      emit('listening', { issuer, port: server.address().port });
      await obey(lines, commands(parts));
    } catch (error) {
      console.error(error);
      fail(error.message);
    }
    process.exit(0);
  });
}

async function serve(server, issuer, settings) {
  const library = join(settings.nodeModules, 'oidc-provider', 'lib', 'index.js');
  const { default: Provider } = await import(pathToFileURL(library).href);
  const store = new Store(settings.stateFile);
  const faults = new Faults();
  const provider = new Provider(issuer, configuration(settings, store));
  report(provider);
  const handle = provider.callback();
  const counted = tokenRequests(handle, faults);
  server.on('request', (req, res) => {
    res.setHeader('content-security-policy', CONTENT_SECURITY_POLICY);
    counted(req, res);
  });
  return { store, faults };
}

function commands({ store, faults }) {
  return {
    // Nothing to do: its answer comes after every event that happened before it.
    sync: () => null,
    inject: (fault) => faults.inject(fault),
    clear_faults: () => faults.clear(),
    // As if every person had withdrawn their consent: without the provider's own events.
    revoke_grants: () => {
      const grants = [...store.of('Grant')].map(([id]) => id);
      for (const model of ['AccessToken', 'RefreshToken', 'AuthorizationCode']) {
        for (const [id, payload] of store.of(model)) {
          if (grants.includes(payload.grantId)) {
            store.delete(model, id);
          }
        }
      }
      grants.forEach((id) => store.delete('Grant', id));
      emit('grants_revoked_by_command', { grants });
      return grants.length;
    },
  };
}

async function obey(lines, known) {
  for await (const line of lines) {
    const { id, command, ...members } = JSON.parse(line);
    try {
      emit('command.done', { id, result: known[command](members) ?? null });
    } catch (error) {
      emit('command.failed', { id, error: error.message });
    }
  }
}

function fail(error) {
  emit('failed', { error });
  process.exit(1);
}

await main();
