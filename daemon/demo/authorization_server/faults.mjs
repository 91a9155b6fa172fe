// The token endpoint as a hostile network sees it. This stands in front of the certified code and
// never inside it: it counts what arrives, and where a test asks for it, delays, replaces, cuts or
// swallows requests and replies.
//
// A fault of phase `before` keeps the request from the provider; one of phase `after` lets the
// provider process it (and rotate) and then spoils the reply.

import { setTimeout as sleep } from 'node:timers/promises';

import { digest, emit } from './events.mjs';

const BODY_LIMIT = 64 * 1024;

const FAULT = {
  count: 1, // how many token requests it applies to
  grant_type: null, // only to those of this grant type
  phase: 'before',
  delay_ms: 0, // before the action
  action: 'pass', // pass, answer, hang, reset; after the provider: also truncate
  status: 503, // of answer
  headers: {}, // of answer
  body: '', // of answer
};

const ACTIONS = {
  before: ['pass', 'answer', 'hang', 'reset'],
  after: ['pass', 'answer', 'hang', 'reset', 'truncate'],
};

export class Faults {
  #queue = [];

  inject(wanted) {
    const unknown = Object.keys(wanted).filter((name) => !(name in FAULT));
    const fault = { ...FAULT, ...wanted };
    if (unknown.length > 0 || !ACTIONS[fault.phase]?.includes(fault.action)) {
      throw new TypeError(`no such fault: ${JSON.stringify(wanted)}`);
    }
    this.#queue.push(fault);
  }

  clear() {
    this.#queue = [];
  }

  take(grantType) {
    const fault = this.#queue.find((one) => one.grant_type === null || one.grant_type === grantType);
    if (fault === undefined) {
      return FAULT;
    }
    fault.count -= 1;
    this.#queue = this.#queue.filter((one) => one.count > 0);
    return fault;
  }
}

/** Wrap a request handler: token requests are counted and may meet a fault. */
export function tokenRequests(handle, faults) {
  let received = 0;
  return async (req, res) => {
    if (req.method !== 'POST' || req.url.split('?', 1)[0] !== '/token') {
      handle(req, res);
      return;
    }
    received += 1;
    const number = received;
    res.on('close', () => emit('token_request.ended', {
      number, status: res.writableFinished ? res.statusCode : null,
    }));
    const body = await read(req);
    if (body === null) {
      emit('token_request.incomplete', { number });
      req.socket.destroy();
      return;
    }
    const form = new URLSearchParams(body.toString());
    emit('token_request.received', {
      number,
      grant_type: form.get('grant_type'),
      refresh_token: digest(form.get('refresh_token')),
      authentication: authentication(req, form),
    });
    // The provider takes a body that was read already from here.
    req.body = body;
    await meet(faults.take(form.get('grant_type')), req, res, () => handle(req, res));
  };
}

async function meet(fault, req, res, handle) {
  if (fault.phase === 'before') {
    await sleep(fault.delay_ms);
    if (fault.action === 'pass') {
      handle();
    } else {
      spoil(fault, req, res);
    }
    return;
  }
  const end = res.end.bind(res);
  res.end = (content) => {
    res.end = end;
    sleep(fault.delay_ms).then(() => {
      if (fault.action === 'pass') {
        res.end(content);
      } else {
        spoil(fault, req, res, content);
      }
    });
    return res;
  };
  handle();
}

function spoil(fault, req, res, content = '') {
  switch (fault.action) {
    case 'answer':
      res.getHeaderNames().forEach((name) => res.removeHeader(name));
      res.writeHead(fault.status, fault.headers).end(fault.body);
      break;
    case 'truncate':
      res.write(content.slice(0, content.length / 2), () => req.socket.destroy());
      break;
    case 'reset':
      req.socket.resetAndDestroy();
      break;
    default: // hang: the client has to give up
  }
}

// The provider takes a secret by either way, whichever is registered: here the difference is seen.
function authentication(req, form) {
  if (req.headers.authorization !== undefined) {
    return 'client_secret_basic';
  }
  return form.has('client_secret') ? 'client_secret_post' : 'none';
}

async function read(req) {
  const chunks = [];
  let size = 0;
  try {
    for await (const chunk of req) {
      size += chunk.length;
      if (size > BODY_LIMIT) {
        return null;
      }
      chunks.push(chunk);
    }
  } catch {
    return null;
  }
  return Buffer.concat(chunks);
}
