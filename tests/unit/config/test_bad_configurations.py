"""Configurations that must be refused, as data: the text, the path that is named, a fragment."""

from __future__ import annotations

import pytest

from tests.support.configuration import Desk

_KEY = 'secret: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="'
_DIGEST = "00112233445566778899aabbccddeeff00112233445566778899aabbccddee"

TOP_LEVEL = [
    ("providr: {}", "providr", "did you mean providers?"),
    ("entirely_else: 1", "entirely_else", "the keys here are state_dir, public_url"),
    ("Log: {}", "Log", "did you mean log?"),
    ("log: {levle: info}", "log.levle", "did you mean level?"),
    ("12: x", "", "every key in quotes"),
    ("- a\n- b", "", "must be a mapping"),
    ("just text", "", "must be a mapping"),
    ("state_dir: null", "state_dir", "must not be empty"),
    ("state_dir: 12", "state_dir", "put it in quotes"),
    ("state_dir: [a]", "state_dir", "must be text"),
    ('state_dir: "a\\nb"', "state_dir", "line breaks"),
    ("state_dir: ~nobody-of-this-name/x", "state_dir", "no such home directory"),
    ("database: postgresql://h/d", "database", "must be a mapping"),
    ("database: {url: mysql://h/d}", "database.url", "must begin with postgresql://"),
    ("database: {url: 'postgresql:h/d'}", "database.url", "must begin with postgresql://"),
    ("database: {url: 'postgresql://h:port/d'}", "database.url", "USER:PASSWORD@HOST"),
    ("database: {url: 'postgresql://h:70000/d'}", "database.url", "USER:PASSWORD@HOST"),
    ("database: {url: 'postgresql://u:a@b@h/d'}", "database.url", "as %XX"),
    ("database: {url: 'postgresql://u:a%zz@h/d'}", "database.url", "as %XX"),
    ("database: {url: 'postgresql://u:a#b@h/d'}", "database.url", "as %XX"),
    ("database: {url: 'postgresql://[::1/d'}", "database.url", "as %XX"),
    ("database: {url: 'postgresql://u[:p@h/d'}", "database.url", "as %XX"),
    ("database: {url: {env: NOWHERE}}", "database.url", "variable NOWHERE is not set"),
    ("database: {url: ''}", "database.url", "must not be empty"),
    ("log: {format: xml}", "log.format", "must be one of json, console"),
    ("log: {level: [info]}", "log.level", "must be one of debug, info"),
    ("log: debug", "log", "must be a mapping"),
]

URLS = [
    ("public_url: http://tokens.example", "public_url", "must be https"),
    ("public_url: ftp://localhost", "public_url", "begins with https://"),
    ("public_url: //localhost", "public_url", "begins with https://"),
    ("public_url: tokens.example", "public_url", "begins with https://"),
    ("public_url: https://", "public_url", "valid host"),
    ("public_url: 'https://x.example/?a=b'", "public_url", "must not have a query"),
    ("public_url: 'https://x.example/#a'", "public_url", "fragment"),
    ("public_url: https://me@x.example", "public_url", "user name"),
    ("public_url: https://x.example/a/../b", "public_url", "must not contain . or .."),
    ("public_url: https://x.example:0/", "public_url", "valid host and port"),
    ("public_url: https://x.example:/", "public_url", "valid host and port"),
    ("public_url: https://x.example:70000/", "public_url", "valid host and port"),
    ("public_url: 'https://[::1'", "public_url", "valid host and port"),
    ("public_url: 'https://[fe80::1%25lo]/'", "public_url", "valid host"),
    ("public_url: https://x_.example-/", "public_url", "valid host"),
    ("public_url: http://127.1/", "public_url", "valid host"),
    ("public_url: http://localhost.evil.example/", "public_url", "must be https"),
    ("public_url: https://bücher.example/", "public_url", "ASCII"),
    ("public_url: 'https://x.example/a b'", "public_url", "without spaces"),
    ("public_url: 'https://x.example\\@y.example'", "public_url", "ASCII"),
    (f"public_url: https://x.example/{'a' * 2000}", "public_url", "2000 characters"),
    ("public_url: https://x.example/%zz", "public_url", "ASCII"),
    ("return_urls: https://x.example", "return_urls", "must be a list"),
    ("return_urls: ['https://x.example*']", "return_urls[0]", "at its end"),
    ("return_urls: ['https://*.x.example/*']", "return_urls[0]", "one *"),
    ("return_urls: ['https://*']", "return_urls[0]", "a full URL"),
    ("return_urls: [https://ok.example, http://x.example/a]", "return_urls[1]", "must be https"),
    ("return_urls: ['https://x.example/?to=/*']", "return_urls[0]", "query"),
    ("return_urls: ['https://x.example/a/../*']", "return_urls[0]", "must not contain . or .."),
    ("return_urls: ['https://x.example/#/*']", "return_urls[0]", "fragment"),
    ("return_urls: ['app://done']", "return_urls[0]", "begins with https://"),
    ("return_urls: [null]", "return_urls[0]", "must not be empty"),
]

LISTENERS = [
    ("listen: {api: {address: 0.0.0.0:7420}}", "listen.api.address", "never opened"),
    ("listen: {api: {address: 'db.example:7420'}}", "listen.api.address", "never opened"),
    (
        "listen: {api: {address: 0.0.0.0:7420, allow_non_loopback: true}}",
        "listen.api.allow_non_loopback",
        "never opened",
    ),
    ("listen: {api: {address: null}}", "listen.api.address", "needs a unix_socket"),
    ("listen: {api: {address: 7420}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: '7420'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: ':7420'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: '::1:7420'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: '[127.0.0.1]:7420'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: '127.0.0.1:70000'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: '127.1:7420'}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {address: http://127.0.0.1:1}}", "listen.api.address", "HOST:PORT"),
    ("listen: {api: {unix_socket: 3}}", "listen.api.unix_socket", "put it in quotes"),
    (f"listen: {{api: {{unix_socket: /{'a' * 107}}}}}", "listen.api.unix_socket", "107 bytes"),
    ("listen: {api: {allowed_uids: [0]}}", "listen.api.allowed_uids", "without unix_socket"),
    (
        "listen: {api: {unix_socket: /s, allowed_uids: [-1]}}",
        "listen.api.allowed_uids[0]",
        "whole number",
    ),
    (
        "listen: {api: {unix_socket: /s, allowed_uids: [root]}}",
        "listen.api.allowed_uids[0]",
        "whole number",
    ),
    ("listen: {public: {address: 0.0.0.0:7421}}", "listen.public.address", "allow_non_loopback"),
    ("listen: {ops: {address: '[::]:7422'}}", "listen.ops.address", "allow_non_loopback"),
    ("listen: {ops: {address: null}}", "listen.ops.address", "HOST:PORT"),
    ("listen: {ops: {allow_non_loopback: 1}}", "listen.ops.allow_non_loopback", "true or false"),
    ("listen: {ops: {address: 127.0.0.1:7421}}", "listen.ops.address", "of listen.public too"),
    ("listen: {ops: {address: localhost:7420}}", "listen.ops.address", "of listen.api too"),
    (
        "listen: {ops: {address: 0.0.0.0:7421, allow_non_loopback: true}}",
        "listen.ops.address",
        "of listen.public too",
    ),
    ("listen: {public: {unix_socket: /s}}", "listen.public.unix_socket", "not a known key"),
]

KEYS = [
    (f"encryption: {{keys: [{{{_KEY}}}]}}", "encryption.keys[0].id", "is missing"),
    ("encryption: {keys: [{id: a}]}", "encryption.keys[0].secret", "keys generate"),
    (f"encryption: {{keys: [{{id: 2026, {_KEY}}}]}}", "encryption.keys[0].id", "in quotes"),
    (f"encryption: {{keys: [{{id: a b, {_KEY}}}]}}", "encryption.keys[0].id", "1 to 32"),
    (
        f"encryption: {{keys: [{{id: a, {_KEY}}}, {{id: a, {_KEY}}}]}}",
        "encryption.keys[1].id",
        "is the id of encryption.keys[0] too",
    ),
    ("encryption: {keys: [{id: a, secret: c2hvcnQ=}]}", "encryption.keys[0].secret", "32 bytes"),
    ("encryption: {keys: [{id: a, secret: '!!'}]}", "encryption.keys[0].secret", "32 bytes"),
    ("encryption: {keys: {id: a}}", "encryption.keys", "must be a list"),
    ("callers: {name: a}", "callers", "must be a list"),
    ("callers: [a]", "callers[0]", "must be a mapping"),
    ("callers: [{key: {env: CALLER_KEY}}]", "callers[0].name", "is missing"),
    ("callers: [{name: ' a', key: {env: CALLER_KEY}}]", "callers[0].name", "printable"),
    ("callers: [{name: a}]", "callers[0]", "exactly one of key_sha256 and key"),
    (
        f"callers: [{{name: a, key: {{env: CALLER_KEY}}, key_sha256: '{_DIGEST}ff'}}]",
        "callers[0]",
        "exactly one of key_sha256 and key",
    ),
    (f"callers: [{{name: a, key_sha256: '{_DIGEST}'}}]", "callers[0].key_sha256", "64 hexadec"),
    ("callers: [{name: a, key: short}]", "callers[0].key", "at least 20"),
    ("callers: [{name: a, key: with spaces in it, really}]", "callers[0].really", "not a known"),
    ("callers: [{name: a, key: 'has spaces in it, really'}]", "callers[0].key", "letters, digits"),
    (
        "callers: [{name: a, key: {env: CALLER_KEY}}, {name: b, key: {env: CALLER_KEY}}]",
        "callers[1]",
        "has the same key as callers[0]",
    ),
    (
        f"callers: [{{name: a, key: {{env: CALLER_KEY}}}}, {{name: a, key_sha256: {_DIGEST}ff}}]",
        "callers[1].name",
        "is the name of callers[0] too",
    ),
    (
        "callers: [{name: a, key: {env: CALLER_KEY}, connections: ['a/*']}]",
        "callers[0].connections[0]",
        "must be a pattern",
    ),
    (
        "callers: [{name: a, key: {env: CALLER_KEY}, connections: ['a[b']}]",
        "callers[0].connections[0]",
        "must be a pattern",
    ),
    (
        "callers: [{name: a, key: {env: CALLER_KEY}, connections: '*'}]",
        "callers[0].connections",
        "must be a list",
    ),
    (
        "callers: [{name: a, key: {env: CALLER_KEY}, permissions: [token, admin]}]",
        "callers[0].permissions[1]",
        "must be one of token, proxy, read, manage",
    ),
]

REFRESH = [
    ("refresh: {at: 0}", "refresh.at", "more than 0 and less than 1"),
    ("refresh: {at: 1}", "refresh.at", "more than 0 and less than 1"),
    ("refresh: {at: 75%}", "refresh.at", "must be a number"),
    ("refresh: {at: true}", "refresh.at", "must be a number"),
    ("refresh: {at: .nan}", "refresh.at", "must be a number"),
    ("refresh: {at: null}", "refresh.at", "must be a number"),
    ("refresh: {jitter: -0.1}", "refresh.jitter", "from 0 to 0.5"),
    ("refresh: {jitter: 0.6}", "refresh.jitter", "from 0 to 0.5"),
    ("refresh: {at: 0.9, jitter: 0.2}", "refresh.jitter", "lower one of the two"),
    ("refresh: {margin: -1}", "refresh.margin", "from 0 to ten years"),
    ("refresh: {margin: 60ms}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: 1d}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: 90 s}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: -5s}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: 1h30m}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: [60s]}", "refresh.margin", "the units are s, m and h"),
    ("refresh: {margin: 999999999h}", "refresh.margin", "from 0 to ten years"),
    ("refresh: {request_timeout: 0}", "refresh.request_timeout", "longer than zero"),
    ("refresh: {default_lifetime: 0s}", "refresh.default_lifetime", "longer than zero"),
    ("refresh: {concurrency: 0}", "refresh.concurrency", "whole number from 1"),
    ("refresh: {concurrency: 1.5}", "refresh.concurrency", "whole number from 1"),
    ("refresh: {concurrency: 1_000}", "refresh.concurrency", "whole number from 1"),
    ("refresh: {concurrency: 0x10}", "refresh.concurrency", "whole number from 1"),
]

_SIGNED = "secret: {env: HOOK_SECRET}"

EVENTS = [
    ("events: webhook", "", "must be a mapping"),
    ("events: {webhok: {}}", ".webhok", "did you mean webhook?"),
    ("events: {retention: 30d}", ".retention", "the units are s, m and h"),
    ("events: {retention: 23h}", ".retention", "at least 24h"),
    ("events: {webhook: https://a.example}", ".webhook", "must be a mapping"),
    ("events: {webhook: {url: https://a.example}}", ".webhook.secret", "is missing"),
    (f"events: {{webhook: {{url: http://a.example, {_SIGNED}}}}}", ".webhook.url", "be https"),
    (f"events: {{webhook: {{url: https://me@a.example, {_SIGNED}}}}}", ".webhook.url", "user"),
    (f"events: {{webhook: {{url: 'https://a.example/{{x}}', {_SIGNED}}}}}", ".webhook.url", "%XX"),
    (f"events: {{webhook: {{url: 'https://a.example/#x', {_SIGNED}}}}}", ".webhook.url", "fragm"),
    *(
        (
            f"events: {{webhook: {{url: '{url}', {_SIGNED}, allow_private_hosts: false}}}}",
            ".webhook.url",
            "private",
        )
        for url in ("http://localhost:80", "https://10.0.0.1/", "https://[fd00::1]/")
    ),
    (f"events: {{webhook: {{url: {{env: NOWHERE}}, {_SIGNED}}}}}", ".webhook.url", "is not set"),
    (
        f"events: {{webhook: {{url: https://a.example, {_SIGNED}, allow_private_hosts: 1}}}}",
        ".webhook.allow_private_hosts",
        "true or false",
    ),
    *(
        (
            f"events: {{webhook: {{url: https://a.example, secret: '{secret}'}}}}",
            ".webhook.secret",
            "whsec_ and the base64 of 24 to 64 bytes",
        )
        for secret in ("short", "whsec_c2hvcnQ=", "whsec_" + "!" * 40, "whsec_" + "A" * 88)
    ),
]

CASES = [
    *TOP_LEVEL,
    *URLS,
    *LISTENERS,
    *KEYS,
    *REFRESH,
    *((text, f"events{below}", fragment) for text, below, fragment in EVENTS),
]


@pytest.mark.parametrize(("text", "path", "fragment"), CASES)
def test_bad_configuration(desk: Desk, text: str, path: str, fragment: str) -> None:
    """A bad configuration is refused with the path of what is wrong and what to do."""
    environ = {"CALLER_KEY": "0123456789abcdefghij", "HOOK_SECRET": "0123456789abcdefghijklmn"}
    found = desk.findings(text, environ=environ)
    assert [str(one) for one in found if one.path == path and fragment in one.message], found
