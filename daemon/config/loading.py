"""[configure] File, environment and flags become settings, or all findings at once.

Precedence: flag over environment over file over default. The order of work: layers, then reading
(which never stops at the first mistake), then what holds between keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import SecretStr

from daemon.config import references
from daemon.config.document import read_document
from daemon.config.environment import environment_layer
from daemon.config.events import events
from daemon.config.keys import callers, encryption_keys
from daemon.config.kubernetes import check_service_accounts, kubernetes
from daemon.config.layers import merged, nested
from daemon.config.listeners import listeners
from daemon.config.providers import providers
from daemon.config.reading import FLAG, OpenSection, Reading
from daemon.config.schema import (
    DATABASE,
    ENCRYPTION,
    EVENTS,
    LISTEN,
    LOG,
    REFRESH,
    SETTINGS,
    TRACING,
)
from daemon.config.settings import (
    EncryptionKey,
    Listen,
    Log,
    LogFormat,
    LogLevel,
    Refresh,
    Settings,
)
from daemon.config.sinks import sinks
from daemon.config.tracing import tracing
from daemon.config.trail import Trail
from daemon.config.urls import database_url, has_password, public_url, return_url
from daemon.config.values import (
    InvalidValueError,
    duration,
    fraction,
    one_of,
    positive_duration,
    whole_number,
)
from daemon.domain.errors import ConfigurationError
from daemon.domain.role import Role

DEFAULT_FILE = "tokenward.yaml"
DEFAULT_STATE_DIR = "~/.local/state/tokenward"
HIGHEST_CONCURRENCY = 100_000
HIGHEST_JITTER = 0.5
NO_OVERRIDES: Final[Mapping[str, object]] = MappingProxyType({})

_DEFAULTS: Final = Settings(state_dir=Path())


def find_config(flag: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the file to read: the flag's, ``$TOKENWARD_CONFIG``, ``./tokenward.yaml``.

    ``None`` means defaults. A file that is named is returned whether it exists or not:
    ``load_settings`` then says that it does not.
    """
    variable = environ.get("TOKENWARD_CONFIG")
    named = flag if flag is not None or not variable else Path(variable)
    if named is not None:
        try:
            return cwd / references.expand(str(named), environ)
        except InvalidValueError:
            return cwd / named
    usual = cwd / DEFAULT_FILE
    return usual if usual.exists() else None


def load_settings(
    *,
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] = NO_OVERRIDES,
    role: Role = Role.ALL,
) -> Settings:
    """Return the settings that the file at ``path``, ``environ`` and ``overrides`` make together.

    ``overrides`` are flags by dotted key (``{"log.level": "debug"}``); ``None`` is a flag not
    given. What is allowed and unwise ends in ``Settings.warnings``. ``role`` is what the process
    is for: one that only serves reads no secret of a client or a webhook.

    Raises:
        ConfigurationError: with every finding; no text holds a value of the configuration.
    """
    document = None if path is None else read_document(path)
    flags = nested(overrides, SETTINGS)
    known = [*_provider_names(document), *_provider_names(flags)]
    variables = environment_layer(environ, providers=known)
    values = merged(merged(document, variables.values, SETTINGS), flags, SETTINGS)
    working_directory = Path().absolute()
    reading = Reading(
        environ=environ,
        directory=working_directory if path is None else path.absolute().parent,
        working_directory=working_directory,
        origins={**variables.origins, **dict.fromkeys(_trails(flags), FLAG)},
        role=role,
    )
    reading.findings += variables.findings
    settings = _settings(OpenSection(reading, (), values, SETTINGS))
    check_service_accounts(reading, settings)
    if not role.refreshes:
        _need_what_is_shared(reading, settings)
    reading.findings += [
        finding for name, finding in variables.unknown.items() if name not in reading.referenced
    ]
    if reading.findings:
        raise ConfigurationError(reading.findings)
    return replace(settings, warnings=tuple(reading.warnings))


def _need_what_is_shared(reading: Reading, settings: Settings) -> None:
    """Find what a process that only serves has to share with those that refresh."""
    shared = {
        "database.url": settings.database_url,
        "encryption.keys": settings.encryption_keys,
    }
    for key, value in shared.items():
        if not value and not any(f.path.startswith(key) for f in reading.findings):
            message = "is missing: --role serve needs the one that the processes which refresh use"
            reading.find(tuple(key.split(".")), message)


def _provider_names(layer: object) -> list[str]:
    entries = layer.get("providers") if isinstance(layer, Mapping) else None
    return [name for name in entries if isinstance(name, str)] if isinstance(entries, dict) else []


def _trails(layer: object, trail: Trail = ()) -> Iterator[Trail]:
    """Yield the trail of every value in the layer of flags."""
    if isinstance(layer, Mapping) and layer:
        for name, value in layer.items():
            yield from _trails(value, (*trail, name))
    elif trail:
        yield trail


def _settings(top: OpenSection) -> Settings:
    reading = top.reading
    listen = listeners(top.within("listen", LISTEN))
    _warn_about_public_url(top, listen)
    state_dir = _state_dir(top)
    return Settings(
        state_dir=state_dir,
        public_url=top.get("public_url", public_url, _DEFAULTS.public_url),
        return_urls=top.each("return_urls", return_url),
        listen=listen,
        database_url=_database_url(top.within("database", DATABASE)),
        encryption_keys=_encryption_keys(top.within("encryption", ENCRYPTION)),
        callers=callers(reading, top.at("callers"), top.raw("callers")),
        kubernetes=kubernetes(top),
        refresh=_refresh(top.within("refresh", REFRESH), _DEFAULTS.refresh),
        events=events(top.within("events", EVENTS), _DEFAULTS.events),
        log=_log(top.within("log", LOG), _DEFAULTS.log),
        sinks=sinks(reading, top.at("sinks"), top.raw("sinks"), state_dir=state_dir),
        tracing=tracing(top.within("tracing", TRACING), _DEFAULTS.tracing),
        providers=providers(reading, top.at("providers"), top.raw("providers")),
    )


def _state_dir(top: OpenSection) -> Path:
    given = top.raw("state_dir") if "state_dir" in top else DEFAULT_STATE_DIR
    return references.path(top.reading, top.at("state_dir"), given) or _DEFAULTS.state_dir


def _warn_about_public_url(top: OpenSection, listen: Listen) -> None:
    if (
        "public_url" not in top
        and listen.public.address.port != _DEFAULTS.listen.public.address.port
    ):
        message = (
            f"is {_DEFAULTS.public_url} by default, and listen.public has another port; set it to "
            "the URL under which browsers reach that listener"
        )
        top.reading.warn(top.at("public_url"), message)


def _database_url(section: OpenSection) -> SecretStr | None:
    reading, trail, value = section.reading, section.at("url"), section.raw("url")
    if value is None:
        return None
    found = references.resolved(reading, trail, value)
    url = None if found is None else reading.read(trail, found, database_url)
    if url is None:
        return None
    if has_password(url):
        references.warn_if_inline(reading, trail, value)
    return SecretStr(url)


def _encryption_keys(section: OpenSection) -> tuple[EncryptionKey, ...]:
    return encryption_keys(section.reading, section.at("keys"), section.raw("keys"))


def _refresh(section: OpenSection, default: Refresh) -> Refresh:
    refresh = Refresh(
        at=section.get("at", fraction, default.at),
        jitter=section.get("jitter", fraction, default.jitter),
        margin=section.get("margin", duration, default.margin),
        concurrency=section.get(
            "concurrency", whole_number(1, HIGHEST_CONCURRENCY), default.concurrency
        ),
        request_timeout=section.get("request_timeout", positive_duration, default.request_timeout),
        default_lifetime=section.get(
            "default_lifetime", positive_duration, default.default_lifetime
        ),
    )
    if not 0 < refresh.at < 1:
        section.reading.find(section.at("at"), "must be more than 0 and less than 1, such as 0.75")
    if not 0 <= refresh.jitter <= HIGHEST_JITTER:
        message = f"must be from 0 to {HIGHEST_JITTER}, such as 0.1"
        section.reading.find(section.at("jitter"), message)
    elif refresh.at < 1 <= refresh.at + refresh.jitter / 2:
        message = "with half of it added, at reaches 1: a refresh would come after the expiry"
        section.reading.find(section.at("jitter"), f"{message}; lower one of the two")
    return refresh


def _log(section: OpenSection, default: Log) -> Log:
    return Log(
        format=section.get("format", one_of(LogFormat), default.format),
        level=section.get("level", one_of(LogLevel), default.level),
    )
