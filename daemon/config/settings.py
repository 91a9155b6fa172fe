"""The settings as values: what the rest of the daemon receives, frozen and complete.

Defaults and their reasons live here; ``daemon.config.loading`` turns YAML, environment and flags
into these values or into a list of findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr

from daemon.domain.provider import Provider


class Permission(StrEnum):
    """What a caller may do with the connections its patterns match."""

    TOKEN = "token"
    PROXY = "proxy"
    READ = "read"
    MANAGE = "manage"


class LogFormat(StrEnum):
    """How a log line is written."""

    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The lowest level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a TCP listener binds. Port 0 lets the system choose (tests)."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiListener:
    """The listener for callers. ``allowed_uids`` come through the Unix socket without a key.

    ``allowed_uids`` get every permission on every connection: the socket's mode and this list
    are the whole authorization there.
    """

    address: Address | None = Address("127.0.0.1", 7420)
    unix_socket: Path | None = None
    allowed_uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenListener:
    """A listener that may be opened to others than this machine, when told so."""

    address: Address
    allow_non_loopback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """The three listeners."""

    api: ApiListener = ApiListener()
    public: OpenListener = OpenListener(address=Address("127.0.0.1", 7421))
    ops: OpenListener = OpenListener(address=Address("127.0.0.1", 7422))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionKey:
    """A key of the keyring: 32 bytes and the id that every ciphertext names."""

    id: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A local process that may ask. ``connections`` are glob patterns over connection ids."""

    name: str
    key_sha256: bytes = field(repr=False)
    connections: tuple[str, ...] = ()
    permissions: frozenset[Permission] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """When and how refreshes run.

    ``at`` and ``jitter`` are fractions of a token's lifetime; ``concurrency`` counts refreshes in
    flight in this process; ``request_timeout`` is how long a caller waits for one.
    """

    at: float = 0.75
    jitter: float = 0.1
    margin: timedelta = timedelta(seconds=60)
    concurrency: int = 64
    request_timeout: timedelta = timedelta(seconds=30)
    default_lifetime: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """How the daemon logs."""

    format: LogFormat = LogFormat.JSON
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where events are delivered, signed with ``secret`` (Standard Webhooks, at least 24 bytes).

    ``url`` is https, or http to a loopback host; it may be as good as a secret and is never shown.
    ``allow_private_hosts`` lets it lead to private and loopback addresses.
    """

    url: str = field(repr=False)
    secret: bytes = field(repr=False)
    allow_private_hosts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSettings:
    """The history of connections. ``retention`` is how long an event is kept."""

    webhook: Webhook | None = None
    retention: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration."""

    state_dir: Path
    public_url: str = "http://localhost:7421"
    return_urls: tuple[str, ...] = ()
    listen: Listen = Listen()
    database_url: SecretStr | None = None
    encryption_keys: tuple[EncryptionKey, ...] = ()
    callers: tuple[Caller, ...] = ()
    refresh: Refresh = Refresh()
    log: Log = Log()
    events: EventSettings = EventSettings()
    providers: Mapping[str, Provider] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def redirect_uri(self) -> str:
        """Return the redirect URI to register at every provider (RFC 6749 3.1.2)."""
        return self.public_url + "/callback"
