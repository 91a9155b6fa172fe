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
from typing import NamedTuple

from pydantic import SecretStr

from daemon.domain.provider import Provider
from daemon.domain.sink import Sink


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
    are the whole authorization there. ``quitquitquit``: who may manage may also stop the daemon.
    """

    address: Address | None = Address("127.0.0.1", 7420)
    unix_socket: Path | None = None
    allowed_uids: tuple[int, ...] = ()
    quitquitquit: bool = False


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


class ServiceAccount(NamedTuple):
    """A service account of Kubernetes: all that a token of one of its pods says about who asks."""

    namespace: str
    name: str


class Verification(StrEnum):
    """How a service account token is verified."""

    JWKS = "jwks"
    """Here, with the cluster's public keys."""
    TOKEN_REVIEW = "token_review"
    """By the API server, which also knows of pods that are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """The cluster whose service account tokens callers may present.

    ``audience`` is ours alone; ``issuer`` is compared byte for byte, and known wherever
    ``verification`` is by keys. These come from ``jwks_file``, else from ``jwks_url``, else from
    ``api_server``, to which alone the token in ``token_file`` is sent. ``ca_file`` is what its
    certificate is verified with; ``None``: the system's authorities.
    """

    audience: str
    issuer: str | None = None
    verification: Verification = Verification.JWKS
    api_server: str = "https://kubernetes.default.svc"
    jwks_url: str | None = None
    jwks_file: Path | None = None
    ca_file: Path | None = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
    token_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A local process that may ask. ``connections`` are glob patterns over connection ids.

    Known by one of two: the digest of its key (else empty), or the service account of its pods.
    ``key_file`` is where the key was read, if anywhere: it may be another one there later.
    """

    name: str
    key_sha256: bytes = field(default=b"", repr=False)
    key_file: Path | None = None
    service_account: ServiceAccount | None = None
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
class TracingSettings:
    """Whether spans are told to an OpenTelemetry collector."""

    enabled: bool = False


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
    kubernetes: Kubernetes | None = None
    refresh: Refresh = Refresh()
    log: Log = Log()
    events: EventSettings = EventSettings()
    sinks: tuple[Sink, ...] = ()
    tracing: TracingSettings = TracingSettings()
    providers: Mapping[str, Provider] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def redirect_uri(self) -> str:
        """Return the redirect URI to register at every provider (RFC 6749 3.1.2)."""
        return self.public_url + "/callback"
