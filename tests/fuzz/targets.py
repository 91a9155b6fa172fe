"""What is fuzzed: everything that reads bytes of somebody else's, and where each begins.

A target is a function of bytes that returns ``None`` or raises: any exception is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType

from tests.fuzz import asking, configuring, keeping, replies, seeds

_JSON = (b'"access_token"', b'"refresh_token"', b'"expires_in"', b'"error"', b'"scope"', b"null")
_URL = (b"https://", b"api.acme.example", b"@", b"%2e", b"%2f", b"\\", b"[::1]", b"://", b"#")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``run`` takes any bytes; ``words`` are what a fuzzer would be slow to come upon by itself.

    ``longest`` limits the inputs of a long run: what is only slow because it is huge is no news.
    """

    name: str
    run: Callable[[bytes], None]
    begin: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    longest: int = 4096

    def seeds(self) -> list[bytes]:
        """Return the inputs to begin with: the corpora's, and all that were found before."""
        return [*self.begin(), *seeds.findings(self.name)]


_ALL = (
    Target(name="token_reply", run=replies.token_reply, begin=seeds.token_replies, words=_JSON),
    Target(
        name="retry_after",
        run=replies.waits,
        begin=seeds.waits,
        words=(b"GMT", b"Nov", b"Saturday, ", b"Sat, ", b" 2026 "),
        longest=128,
    ),
    Target(
        name="callback",
        run=asking.callback,
        begin=seeds.callbacks,
        words=(b"code=", b"state=", b"&iss=", b"error=", b"s" * 43, b"%E2%80%A8", b"%00"),
        longest=9000,
    ),
    Target(
        name="metadata",
        run=replies.metadata,
        begin=seeds.metadata,
        words=(b'"issuer"', b'"https://as.example"', b'"token_endpoint"', *_URL),
    ),
    Target(
        name="revocation_reply",
        run=replies.revocation_reply,
        begin=seeds.revocations,
        words=(b'"error"', b"retry-after:", b"unsupported_token_type"),
    ),
    Target(name="journal", run=keeping.journal, begin=seeds.scripts, words=(b"\nr", b"\nk\x01")),
    Target(
        name="journal_segment",
        run=keeping.raw_segment,
        begin=seeds.segments,
        words=(b"TWJ1\x01", b"TWJ1\x02"),
        longest=16384,
    ),
    Target(name="envelope", run=keeping.envelope, begin=seeds.envelopes, longest=512),
    Target(
        name="configuration",
        run=configuring.configuration,
        begin=seeds.configurations,
        words=(b"providers:", b"{env: SECRET}", b"client_secret:", b"<<: ", b"*a", b"&a ", b"!!"),
        longest=2048,
    ),
    Target(
        name="paths_and_hosts",
        run=asking.paths_and_hosts,
        begin=seeds.requests,
        words=(b"/v1/connections/", b"/proxy/", b"\nHost: ", b"127.0.0.1", *_URL),
    ),
    Target(name="allowed_hosts", run=asking.allowed_hosts, begin=seeds.urls, words=_URL),
    Target(
        name="templates",
        run=configuring.templates,
        begin=seeds.templates,
        words=(b"{a}", b"{token.b}", b"{me.c}", b"https://", b".acme.example", b"?", b"\n"),
        longest=1024,
    ),
    Target(
        name="bodies",
        run=asking.bodies,
        begin=seeds.bodies,
        words=(b'"provider":"acme"', b'"tokens":', b'"fields":', b"\\ud800", b"\\u0000"),
    ),
    Target(
        name="cursors",
        run=asking.cursors,
        begin=seeds.cursors,
        words=(b"cursor=", b"limit=", b"evt_", b"metadata.", b"%ED%A0%80"),
        longest=512,
    ),
)

TARGETS = MappingProxyType({target.name: target for target in _ALL})
