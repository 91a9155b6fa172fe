"""Where each target begins: the corpora, and what was found before. Pure, but for reading files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.keeping import real_records

CORPORA = Path(__file__).parents[1] / "corpora"
FINDINGS = CORPORA / "fuzz_findings.json"
_EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
_LARGEST = 64 * 1024


@cache
def _corpus(name: str) -> Any:
    return json.loads((CORPORA / name).read_bytes())


def findings(target: str) -> list[bytes]:
    """Return the inputs that once broke ``target``, as ``tests/corpora`` keeps them."""
    return [_input(each) for each in json.loads(FINDINGS.read_bytes()) if each["target"] == target]


def _input(each: dict[str, Any]) -> bytes:
    if "data_b64" in each:
        return base64.b64decode(each["data_b64"])
    piece, count = each.get("repeat", ["", 0])
    text: str = each.get("data", "") + piece * count + each.get("then", "")
    return text.encode("utf-8", "surrogateescape")


def token_replies() -> Iterator[bytes]:
    """Yield every token reply of the corpus that is small enough."""
    for group in _corpus("token_replies.json"):
        for case in group["cases"]:
            if "body_b64" in case:
                body = base64.b64decode(case["body_b64"])
            else:
                piece, count = case.get("repeat", ["", 0])
                text = case.get("body", case.get("before", "")) + piece * count
                body = (text + case.get("then", "")).encode("utf-8", "backslashreplace")
            if len(body) <= _LARGEST:
                head = "\n".join([str(case["status"]), *case.get("headers", [])])
                yield head.encode() + b"\n\n" + body


def waits() -> Iterator[bytes]:
    """Yield waits in every notation."""
    dates = ("Sat, 21 Nov 2026 12:02:00 GMT", "Saturday, 21-Nov-26 12:02:00 GMT")
    yield from (b"120", b"-5", b"1e3", b"0x10", b"9" * 20, b"", "١٢".encode(), b"1, 2")
    for date in (*dates, "Sat Nov 21 12:02:00 2026", "Sat Nov  1 12:02:60 2026"):
        yield date.encode()
        yield f"{date}\n{dates[0]}".encode()


def revocations() -> Iterator[bytes]:
    """Yield revocation replies."""
    yield from (
        b"200\n\n",
        b"503\nretry-after: 7\n\n",
        b"401 b\n\n",
        b"fault timeout",
        b"fault url",
    )
    for error in ("invalid_token", "unsupported_token_type", "invalid_client", "invalid_grant"):
        yield f'400\n\n{{"error":"{error}"}}'.encode()


def metadata() -> Iterator[bytes]:
    """Yield metadata documents and endpoints."""
    whole = {
        "issuer": "https://as.example",
        "token_endpoint": "https://as.example/token",
        "authorization_endpoint": "https://as.example/authorize",
        "revocation_endpoint": "http://127.0.0.1:1/revoke",
        "introspection_endpoint": None,
        "authorization_response_iss_parameter_supported": True,
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }
    yield json.dumps(whole).encode()
    for name in whole:
        yield json.dumps({**whole, name: "https://evil.example@as.example/#x"}).encode()
        yield json.dumps({**whole, name: [1]}).encode()
    yield from (b"https://as.example/token", b"http://[::1]:1/x", b"https://a.example:99999/")


def callbacks() -> Iterator[bytes]:
    """Yield the callback corpus with a well-formed state."""
    for case in _corpus("callbacks.json"):
        query = case.get("query", "").replace("@state@", "s" * 43)
        yield query.replace("@iss@", "https%3A%2F%2Fas.example").encode()


def requests() -> Iterator[bytes]:
    """Yield request targets with headers."""
    yield b"GET /v1/connections/a/token\nHost: 127.0.0.1:7420"
    yield b"OPTIONS /\nHost: localhost\nOrigin: http://localhost\nSec-Fetch-Site: none"
    for case in _corpus("proxy_targets.json"):
        if case["kind"] == "path":
            path = case["input"]
            yield f"GET /v1/connections/a/proxy{path}\nHost: [::1]:1".encode()
    for group in ("targets", "hosts"):
        for case in _corpus("api_requests.json")[group]["cases"]:
            host = case.get("host") or "127.0.0.1"
            yield f"{case.get('do', 'GET /')}\nHost: {host}".encode()


def urls() -> Iterator[bytes]:
    """Yield URLs that want a token."""
    for case in _corpus("proxy_targets.json"):
        if case["kind"] in {"target", "url"}:
            yield case["input"].encode("utf-8", "surrogatepass")
    yield from (b"https://a.files.example/x?y", b"http://127.0.0.1:8080", b"http://[::1]:81/")


def bodies() -> Iterator[bytes]:
    """Yield bodies that create and change connections, and forms."""
    corpus = _corpus("api_requests.json")
    for group in ("bodies", "members", "forms"):
        for case in corpus[group]["cases"]:
            if "json" in case:
                body = json.dumps(case["json"])
                yield f"c{body}".encode()
                yield f"p{body}".encode()
            elif "body" in case:
                yield f"c{case['body']}".encode("utf-8", "surrogatepass")
            elif "form" in case:
                yield f"f{case['form']}".encode()
    yield (
        b'c{"provider":"acme","id":"x","fields":{"region":"us","path":"p"},"scopes":["read"],'
        b'"metadata":{"a":"b"},"return_url":"https://app.example/any/x","tokens":'
        b'{"refresh_token":"r","access_token":"a","expires_at":"2026-11-21T12:00:00+01:00"}}'
    )
    yield b'p{"label":"x","metadata":{"team":null,"a":"b"},"fields":{"path":"q","kind":null}}'
    yield b'a{"return_url":"https://app.example/done"}'


def cursors() -> Iterator[bytes]:
    """Yield queries of listings and ids of events."""
    cursor = base64.urlsafe_b64encode(b"2026-11-21T12:00:00+00:00 acme-1").rstrip(b"=")
    yield b"limit=5&cursor=" + cursor
    yield b"provider=acme&status=active&q=x&metadata.team=a&limit=1000"
    yield from (b"evt_0", b"evt_999999999999999999", b"limit=0", b"cursor=%00")
    for case in _corpus("api_requests.json")["queries"]["cases"]:
        yield case["do"].partition("?")[2].encode()


def scripts() -> Iterator[bytes]:
    """Yield scripts that make journal segments."""
    yield b"r0\nr1\nr2\nr3"
    yield from (b"r0\nt\x80\nr1", b"r0\nf\x11\nr1", b"r0\nr1\n\0\0\0\0", b"pattempt-1\nk\x07x\nr2")


def segments() -> Iterator[bytes]:
    """Yield segments, whole and torn."""
    whole = b"".join(real_records())
    yield from (b"", bytes(64), whole, whole + bytes(4096), whole[:-7], b"x" + whole, whole[40:])
    yield from (b"TWJ1" * 4000, b"TWJ1\x01\x00\x00\x10\x00" * 900)


def envelopes() -> Iterator[bytes]:
    """Yield what is done to a ciphertext."""
    yield from (b"", b"\x01", b"\x01\x01", b"\x01" + bytes(40) + b"\x01", b"\x02", b"\x03x")
    yield b"\x00\x01\x02k1" + bytes(28)
    yield b"\x00\x01\xff" + bytes(300)


def configurations() -> Iterator[bytes]:
    """Yield configurations: the documented one in whole and in parts, and odd YAML."""
    example = _EXAMPLE.read_bytes()
    yield example
    lines = example.split(b"\n")
    yield from (b"\n".join(lines[start : start + 25]) for start in range(0, len(lines), 25))
    yield (
        b"providers:\n  acme:\n    issuer: https://a.example\n    client_id: x\n"
        b"    client_secret: {env: SECRET}\n    token_response: {scope: 'join(`,`, scopes)'}\n"
        b"    fields: {region: {enum: [eu], default: eu}}\n    rotation: {grace: 30s}\n"
        b"    api_base_url: https://{region}.a.example\n    test: {path: /me, expect: ok}\n"
        b"    request: {headers: {X-A: '{token.b}'}, query: {k: v}, body: {a: [1, '{me.c}']}}\n"
    )
    yield (
        b"callers: [{name: a, key: {env: SECRET}, connections: ['*'], permissions: [read]}]\n"
        b"encryption: {keys: [{id: k, secret: {env: SECRET}}]}\nevents: {webhook: {url: null}}\n"
        b"listen: {api: {address: 127.0.0.1:1, unix_socket: null}}\nrefresh: {at: 0.7}\n"
    )
    yield b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n<<: {d: *a}\n"


def templates() -> Iterator[bytes]:
    """Yield templates with values."""
    yield b"https://{a}.acme.example/{token.b}?q={me.c}\neu\nx/../y\n?&#"
    yield b"{token.b}/v1/{a}\n..\nhttps://eu.acme.example/x"
    yield b"{me.c} ({a}) <{token.b}>\n\nx@example.com\nA B"
    yield b"/users/{a}/x?id={a}\n%2e%2e\n"
