"""Current tokens in memory: what a token read answers from, without touching anything else.

An entry holds the answer's bytes, built once for each generation; only ``expires_in`` is put in
at each read. The cache never decides what is current: it is told, by this process's own
refreshes and by notifications, and keeps the newest generation it was told of. Within one
generation a disconnect is the last word: only a new grant, which is a new generation, follows it.
"""

from __future__ import annotations

import asyncio
from math import inf

import orjson

from daemon.domain.connection import Status
from daemon.domain.outcome import FailureReason, OutcomeKind
from daemon.domain.tokens import CurrentToken

# 50,000 entries of a 1.5 KB token are about 100 MB at the worst. Connections beyond it are read
# from the database when asked for.
_LARGEST = 50_000
# A token with less than this left would be expired before its caller can use it, and would be
# announced as expires_in 0: it counts as expired.
SHORTEST_LIFE = 1.0
_EXPIRES_IN = b',"expires_in":'
_SERVED = frozenset({Status.ACTIVE, Status.FAILING, Status.REAUTHORIZATION_REQUIRED})
# Codes of ours for failures in which the provider named no error of its own.
_OURS = frozenset(
    {
        *OutcomeKind,
        FailureReason.NETWORK,
        FailureReason.TIMEOUT,
        FailureReason.RATE_LIMITED,
        FailureReason.SERVER_ERROR,
        FailureReason.MALFORMED_RESPONSE,
        FailureReason.OTHER,
        *("reply_lost", "no_refresh_token", "token_revoked", "decrypt_error"),
    }
)


class Entry:
    """One connection's answer. ``expires_at`` and ``issued_at`` are seconds since the epoch."""

    __slots__ = (
        "connection",
        "expires_at",
        "failure",
        "generation",
        "head",
        "issued_at",
        "provider",
        "provider_error",
        "refreshable",
        "retry_at",
        "status",
        "tail",
        "used",
    )

    def __init__(self, token: CurrentToken) -> None:
        self.connection = token.connection
        self.provider = token.provider
        self.status = token.status
        self.generation = token.generation
        self.refreshable = token.refreshable
        self.failure = token.failure
        self.provider_error = provider_error_of(token)
        self.retry_at = token.retry_at
        self.issued_at = token.issued_at.timestamp()
        self.expires_at = _good_until(token)
        self.used = False
        body = orjson.dumps(
            {
                "access_token": token.access_token,
                "token_type": token.token_type,
                "expires_at": token.expires_at
                and token.expires_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "scope": " ".join(token.scopes),
                "generation": token.generation,
                "connection": token.connection,
            }
        )
        self.head = body[:-1] + _EXPIRES_IN
        warning = warning_of(token)
        self.tail = b"}" if warning is None else b',"warning":' + orjson.dumps(warning) + b"}"

    def outlasts(self, token: CurrentToken) -> bool:
        """Tell whether ``token`` is older news than this.

        A lower generation may be the newer token, where the database has forgotten some.
        """
        if self.generation != token.generation:
            is_issued_later = token.issued_at.timestamp() > self.issued_at
            return self.generation > token.generation and not is_issued_later
        return self.status is Status.DISCONNECTED and token.status is not Status.DISCONNECTED

    def life(self, now: float) -> float:
        """Return the seconds of life left at ``now``; infinite where it does not expire."""
        return self.expires_at - now

    def is_good(self, now: float) -> bool:
        """Tell whether the token may be served at ``now``."""
        return self.expires_at - now >= SHORTEST_LIFE

    def token(self) -> tuple[str, str]:
        """Return type and value of the access token, read out of the answer: not kept twice."""
        members = orjson.loads(self.head[: -len(_EXPIRES_IN)] + b"}")
        return members["token_type"], members["access_token"]

    def body(self, now: float, *, warning: str | None = None) -> bytes:
        """Return the answer's JSON at ``now``, with ``warning`` in place of the entry's own."""
        life = self.expires_at - now
        seconds = b"null" if life == inf else b"%d" % life
        if warning is None:
            return self.head + seconds + self.tail
        return self.head + seconds + b',"warning":' + orjson.dumps(warning) + b"}"


def warning_of(token: CurrentToken) -> str | None:
    """Return what a caller should know while the token is good but its renewal is not."""
    if token.status is Status.ACTIVE or not token.access_token:
        return None
    if token.status is Status.REAUTHORIZATION_REQUIRED:
        return (
            "This token is good until it expires, then a person must connect again: "
            f"{token.failure or 'the grant is dead.'}"
        )
    return f"This token is good, but refreshing it fails: {token.failure or 'retrying.'}"


def provider_error_of(token: CurrentToken) -> str | None:
    """Return the provider's error code (RFC 6749 5.2) while refreshing fails, if it gave one."""
    return None if token.failure_code in _OURS else token.failure_code


def _good_until(token: CurrentToken) -> float:
    if not token.access_token or token.status not in _SERVED:
        return 0.0
    return inf if token.expires_at is None else token.expires_at.timestamp()


class TokenCache:
    """The entries of this process, bounded, by connection id. One event loop, no locks."""

    def __init__(self, *, largest: int = _LARGEST) -> None:
        self._largest = largest
        self._entries: dict[str, Entry] = {}
        self._awaited: dict[str, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, connection_id: str) -> Entry | None:
        """Return the entry, whatever its state."""
        return self._entries.get(connection_id)

    def holds(self, connection_id: str) -> bool:
        """Tell whether anybody here cares about the connection."""
        return connection_id in self._entries or connection_id in self._awaited

    def ids(self) -> list[str]:
        """Return the ids of all entries."""
        return list(self._entries)

    def put(self, token: CurrentToken) -> Entry:
        """Take in what is current, unless something newer is known; return what is in force.

        Answers may arrive in another order than they were given: one from before a disconnect
        must not bring its token back.
        """
        known = self._entries.get(token.connection)
        if known is not None and known.outlasts(token):
            return known
        entry = Entry(token)
        entry.used = known is not None and known.used
        self._entries[token.connection] = entry
        self._tell(token.connection)
        if len(self._entries) > self._largest:
            self._evict()
        return entry

    def drop(self, connection_id: str) -> None:
        """Forget a connection that is gone."""
        self._entries.pop(connection_id, None)
        self._tell(connection_id)

    def take_used(self) -> list[str]:
        """Return the ids read since the last call."""
        used = [entry for entry in self._entries.values() if entry.used]
        for entry in used:
            entry.used = False
        return [entry.connection for entry in used]

    def changed(self, connection_id: str) -> asyncio.Future[None]:
        """Return a future that is done at the connection's next change. Cancel it when done."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(connection_id, [])
        waiting.append(future)
        future.add_done_callback(lambda done: self._forget(connection_id, done))
        return future

    def _forget(self, connection_id: str, future: asyncio.Future[None]) -> None:
        waiting = self._awaited.get(connection_id, [])
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            self._awaited.pop(connection_id, None)

    def _tell(self, connection_id: str) -> None:
        for future in self._awaited.pop(connection_id, ()):
            if not future.done():
                future.set_result(None)

    def _evict(self) -> None:
        """Drop the oldest entry that was not read lately (second chance)."""
        for _ in range(len(self._entries)):
            connection_id = next(iter(self._entries))
            entry = self._entries.pop(connection_id)
            if not entry.used:
                return
            entry.used = False
            self._entries[connection_id] = entry
