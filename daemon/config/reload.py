"""What a changed configuration changes in a running daemon (SIGHUP), as a pure comparison.

Some of the settings are built into open sockets and the database; those keep their old values until
a restart, and the rest applies at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from daemon.config.settings import EventSettings, Listen, Refresh, Settings
from daemon.domain.errors import Finding
from daemon.domain.provider import Provider

S = TypeVar("S", Listen, Refresh, EventSettings)

_RESTART = "has changed and takes effect at the next restart; until then the old value holds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a reload does.

    ``settings`` is what to run with from now on. ``applied`` names what changes at once,
    ``restart`` what keeps its old value. ``removed_providers`` are gone from the new
    configuration: whether they may go is not decided here, it depends on their connections.
    """

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[Finding, ...]
    removed_providers: tuple[str, ...]


def changes(old: Settings, new: Settings) -> Changes:
    """Compare the settings in use with those just read."""
    applied = [
        *(["return_urls"] if old.return_urls != new.return_urls else []),
        *(["encryption.keys"] if old.encryption_keys != new.encryption_keys else []),
        *(["callers"] if old.callers != new.callers else []),
        *(["kubernetes"] if old.kubernetes != new.kubernetes else []),
        *_differing(old.refresh, new.refresh, "refresh"),
        *_differing(old.events, new.events, "events"),
        *(["sinks"] if old.sinks != new.sinks else []),
        *(["log.level"] if old.log.level is not new.log.level else []),
        *(f"providers.{name}" for name in _changed(old.providers, new.providers)),
    ]
    settings = replace(
        new,
        state_dir=old.state_dir,
        public_url=old.public_url,
        listen=old.listen,
        database_url=old.database_url,
        log=replace(new.log, format=old.log.format),
        tracing=old.tracing,
    )
    return Changes(
        settings=settings,
        applied=tuple(applied),
        restart=tuple(Finding(path, _RESTART) for path in _kept(old, new)),
        removed_providers=tuple(name for name in old.providers if name not in new.providers),
    )


def _kept(old: Settings, new: Settings) -> Iterator[str]:
    """Yield the paths that differ and that a running daemon cannot change."""
    if old.state_dir != new.state_dir:
        yield "state_dir"
    if old.public_url != new.public_url:
        yield "public_url"
    yield from _differing(old.listen, new.listen, "listen")
    if old.database_url != new.database_url:
        yield "database.url"
    if old.log.format is not new.log.format:
        yield "log.format"
    if old.tracing != new.tracing:
        yield "tracing.enabled"


def _differing(old: S, new: S, path: str) -> Iterator[str]:
    """Yield the path of each field in which two values of one dataclass differ."""
    for field in fields(old):
        if getattr(old, field.name) != getattr(new, field.name):
            yield f"{path}.{field.name}"


def _changed(old: Mapping[str, Provider], new: Mapping[str, Provider]) -> Iterator[str]:
    """Yield the names of providers that were added, removed or changed."""
    for name in dict.fromkeys([*old, *new]):
        if name not in old or name not in new or not _same(old[name], new[name]):
            yield name


def _same(one: Provider, other: Provider) -> bool:
    """Compare two providers; compiled selectors have no equality of their own."""
    return _selectors(one) == _selectors(other) and _unselecting(one) == _unselecting(other)


def _selectors(provider: Provider) -> dict[str, str]:
    found = {
        **{f"token_response.{name}": each for name, each in provider.token_response.items()},
        "account_id": provider.account_id,
        "test.expect": None if provider.test is None else provider.test.expect,
    }
    return {name: each.expression for name, each in found.items() if each is not None}


def _unselecting(provider: Provider) -> Provider:
    test = provider.test and replace(provider.test, expect=None)
    return replace(provider, token_response={}, account_id=None, test=test)
