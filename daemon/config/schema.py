"""The keys of the configuration as data: which exist, which come later, which hold text.

The readers (``daemon.config.reading`` and its neighbours) say what a value must be; this table says
where values may stand, so that unknown keys, environment variables and layers share one truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Leaf(Enum):
    """How an environment variable's text becomes this key's value."""

    TEXT = auto()
    """Verbatim."""
    NULLABLE_TEXT = auto()
    """Verbatim, but ``null`` means no value."""
    SECRET = auto()
    """Verbatim (it is the secret itself), unless it is a ``{file: …}`` or ``{env: …}``."""
    YAML = auto()
    """Parsed as YAML: numbers, true, false, null, lists, mappings, durations."""


@dataclass(frozen=True, slots=True)
class TextMap:
    """A mapping from free names to text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A mapping with fixed keys.

    ``later`` are keys that the documentation names and this version does not support. ``hints``
    answer particular unknown keys better than "unknown key" does.
    """

    keys: Mapping[str, Key]
    later: frozenset[str] = frozenset()
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from names that a person chooses to sections of one form."""

    section: Section


@dataclass(frozen=True, slots=True)
class Listed:
    """A list of sections of one form. An environment variable sets the whole list."""

    section: Section


Key = Leaf | TextMap | Section | Named | Listed

_IMPLICIT = (
    "is not a key. tokenward asks for codes only: response_type=token (tokens in the URL fragment) "
    "is forbidden by RFC 9700 2.1.2; remove it"
)

API_LISTENER = Section(
    keys={
        "address": Leaf.NULLABLE_TEXT,
        "unix_socket": Leaf.NULLABLE_TEXT,
        "allowed_uids": Leaf.YAML,
        "quitquitquit": Leaf.YAML,
    },
    hints={
        "allow_non_loopback": "the api listener hands out tokens and is never opened to others; "
        "remove this key, and run tokenward beside its callers"
    },
)

OPEN_LISTENER = Section(keys={"address": Leaf.TEXT, "allow_non_loopback": Leaf.YAML})

ENCRYPTION_KEY = Section(keys={"id": Leaf.TEXT, "secret": Leaf.SECRET})

SERVICE_ACCOUNT = Section(keys={"namespace": Leaf.TEXT, "name": Leaf.TEXT})

CALLER = Section(
    keys={
        "name": Leaf.TEXT,
        "key_sha256": Leaf.TEXT,
        "key": Leaf.SECRET,
        "service_account": SERVICE_ACCOUNT,
        "connections": Leaf.YAML,
        "permissions": Leaf.YAML,
    }
)

KUBERNETES = Section(
    keys={
        "audience": Leaf.TEXT,
        "issuer": Leaf.NULLABLE_TEXT,
        "verification": Leaf.TEXT,
        "api_server": Leaf.TEXT,
        "jwks_url": Leaf.NULLABLE_TEXT,
        "jwks_file": Leaf.NULLABLE_TEXT,
        "ca_file": Leaf.NULLABLE_TEXT,
        "token_file": Leaf.TEXT,
    }
)

FIELD = Section(
    keys={
        "title": Leaf.TEXT,
        "help": Leaf.TEXT,
        "enum": Leaf.YAML,
        "default": Leaf.NULLABLE_TEXT,
        "pattern": Leaf.NULLABLE_TEXT,
        "required": Leaf.YAML,
    },
    hints={"name": "is not a key: a field's name is the key it stands under"},
)

TEST = Section(
    keys={
        "method": Leaf.TEXT,
        "path": Leaf.NULLABLE_TEXT,
        "url": Leaf.NULLABLE_TEXT,
        "headers": TextMap(),
        "query": TextMap(),
        "body": Leaf.YAML,
        "expect": Leaf.NULLABLE_TEXT,
        "interval": Leaf.YAML,
    }
)

REQUEST = Section(keys={"headers": TextMap(), "query": TextMap(), "body": Leaf.YAML})

REVOCATION_REQUEST = Section(
    keys={
        "method": Leaf.TEXT,
        "format": Leaf.TEXT,
        "authentication": Leaf.TEXT,
        "token_param": Leaf.NULLABLE_TEXT,
        "sends_hint": Leaf.YAML,
        "tokens": Leaf.YAML,
        "params": TextMap(),
        "on_reconnect": Leaf.YAML,
    }
)

PROVIDER = Section(
    keys={
        "issuer": Leaf.NULLABLE_TEXT,
        "authorization_endpoint": Leaf.NULLABLE_TEXT,
        "token_endpoint": Leaf.NULLABLE_TEXT,
        "refresh_endpoint": Leaf.NULLABLE_TEXT,
        "revocation_endpoint": Leaf.NULLABLE_TEXT,
        "revocation_request": REVOCATION_REQUEST,
        "introspection_endpoint": Leaf.NULLABLE_TEXT,
        "grant": Leaf.TEXT,
        "client_id": Leaf.TEXT,
        "client_secret": Leaf.SECRET,
        "token_endpoint_auth_method": Leaf.TEXT,
        "scopes": Leaf.YAML,
        "scope_separator": Leaf.TEXT,
        "pkce": Leaf.YAML,
        "authorization_params": TextMap(),
        "token_params": TextMap(),
        "refresh_params": TextMap(),
        "token_request_format": Leaf.TEXT,
        "token_response": TextMap(),
        "default_lifetime": Leaf.YAML,
        "rotation": Leaf.YAML,
        "fields": Named(FIELD),
        "api_base_url": Leaf.NULLABLE_TEXT,
        "allowed_hosts": Leaf.YAML,
        "allow_private_hosts": Leaf.YAML,
        "test": TEST,
        "label": Leaf.NULLABLE_TEXT,
        "label_mask": Leaf.YAML,
        "account_id": Leaf.NULLABLE_TEXT,
        "request": REQUEST,
        "concurrency": Leaf.YAML,
        "rate": Leaf.YAML,
    },
    later=frozenset({"preset"}),
    hints={
        "response_type": _IMPLICIT,
        "redirect_uri": "is not a key: the redirect URI is public_url followed by /callback",
        "name": "is not a key: a provider's name is the key it stands under",
    },
)

LISTEN = Section(keys={"api": API_LISTENER, "public": OPEN_LISTENER, "ops": OPEN_LISTENER})

DATABASE = Section(keys={"url": Leaf.SECRET})

ENCRYPTION = Section(keys={"keys": Listed(ENCRYPTION_KEY)})

REFRESH = Section(
    keys={
        "at": Leaf.YAML,
        "jitter": Leaf.YAML,
        "margin": Leaf.YAML,
        "concurrency": Leaf.YAML,
        "request_timeout": Leaf.YAML,
        "default_lifetime": Leaf.YAML,
    }
)

WEBHOOK = Section(
    keys={"url": Leaf.SECRET, "secret": Leaf.SECRET, "allow_private_hosts": Leaf.YAML}
)

EVENTS = Section(keys={"webhook": WEBHOOK, "retention": Leaf.YAML})

PID_FILE_SIGNAL = Section(keys={"pid_file": Leaf.TEXT, "signal": Leaf.TEXT})

SINK = Section(
    keys={
        "connection": Leaf.TEXT,
        "path": Leaf.TEXT,
        "format": Leaf.TEXT,
        "mode": Leaf.TEXT,
        "owner": Leaf.YAML,
        "group": Leaf.YAML,
        "allow_shared_directory": Leaf.YAML,
        "command": Leaf.YAML,
        "signal": PID_FILE_SIGNAL,
    }
)

TRACING = Section(keys={"enabled": Leaf.YAML})

LOG = Section(keys={"format": Leaf.TEXT, "level": Leaf.TEXT})

SETTINGS = Section(
    keys={
        "state_dir": Leaf.TEXT,
        "public_url": Leaf.TEXT,
        "return_urls": Leaf.YAML,
        "listen": LISTEN,
        "database": DATABASE,
        "encryption": ENCRYPTION,
        "callers": Listed(CALLER),
        "kubernetes": KUBERNETES,
        "refresh": REFRESH,
        "events": EVENTS,
        "log": LOG,
        "sinks": Listed(SINK),
        "tracing": TRACING,
        "providers": Named(PROVIDER),
    }
)
