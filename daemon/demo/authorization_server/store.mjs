// Where the provider keeps grants, tokens and sessions: memory, and where a file is given, also a
// file of JSON lines that is replayed at the next start. The provider's own memory adapter forgets
// the oldest of a thousand entries; here nothing is forgotten before it expires.

import { appendFileSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';

const SWEEP_EVERY = 1000;

export class Store {
  #entries = new Map();

  #file;

  #writes = 0;

  constructor(file = null) {
    this.#file = file;
    if (file !== null) {
      this.#replay();
    }
  }

  get(model, id) {
    const entry = this.#entries.get(`${model}:${id}`);
    return entry === undefined || expired(entry) ? undefined : entry.payload;
  }

  put(model, id, payload, expiresAt) {
    this.#apply({ key: `${model}:${id}`, entry: { payload, expiresAt } });
  }

  delete(model, id) {
    this.#apply({ key: `${model}:${id}`, entry: null });
  }

  consume(model, id) {
    const entry = this.#entries.get(`${model}:${id}`);
    if (entry !== undefined) {
      const payload = { ...entry.payload, consumed: Math.floor(Date.now() / 1000) };
      this.put(model, id, payload, entry.expiresAt);
    }
  }

  * of(model) {
    for (const [key, entry] of [...this.#entries]) {
      if (key.startsWith(`${model}:`) && !expired(entry)) {
        yield [key.slice(model.length + 1), entry.payload];
      }
    }
  }

  /** Return the adapter that the provider asks for, one for each model. */
  adapter(model) {
    return {
      upsert: async (id, payload, lifetime) => {
        this.put(model, id, payload, lifetime ? Date.now() + lifetime * 1000 : null);
      },
      find: async (id) => this.get(model, id),
      findByUid: async (uid) => this.#find(model, (payload) => payload.uid === uid),
      findByUserCode: async (code) => this.#find(model, (payload) => payload.userCode === code),
      consume: async (id) => this.consume(model, id),
      destroy: async (id) => this.delete(model, id),
      revokeByGrantId: async (grantId) => {
        for (const [id, payload] of this.of(model)) {
          if (payload.grantId === grantId) {
            this.delete(model, id);
          }
        }
      },
    };
  }

  #find(model, matches) {
    for (const [, payload] of this.of(model)) {
      if (matches(payload)) {
        return payload;
      }
    }
    return undefined;
  }

  #apply(change) {
    if (this.#file !== null) {
      appendFileSync(this.#file, `${JSON.stringify(change)}\n`, { mode: 0o600 });
    }
    this.#remember(change);
    this.#writes += 1;
    if (this.#writes % SWEEP_EVERY === 0) {
      this.#forgetExpired();
    }
  }

  #remember({ key, entry }) {
    if (entry === null) {
      this.#entries.delete(key);
    } else {
      this.#entries.set(key, entry);
    }
  }

  #forgetExpired() {
    for (const [key, entry] of this.#entries) {
      if (expired(entry)) {
        this.#entries.delete(key);
      }
    }
  }

  #replay() {
    const lines = existsSync(this.#file) ? readFileSync(this.#file, 'utf8').split('\n') : [];
    // What follows the last newline is empty, or the torn line of a process that was killed.
    lines.pop();
    for (const line of lines) {
      this.#remember(JSON.parse(line));
    }
    this.#forgetExpired();
    const live = [...this.#entries].map(([key, entry]) => `${JSON.stringify({ key, entry })}\n`);
    writeFileSync(`${this.#file}.new`, live.join(''), { mode: 0o600 });
    renameSync(`${this.#file}.new`, this.#file);
  }
}

function expired(entry) {
  return entry.expiresAt !== null && entry.expiresAt <= Date.now();
}
