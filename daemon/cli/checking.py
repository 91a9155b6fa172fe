"""``tokenward check``: everything that can be said about an installation before it is started.

Looks and changes nothing, with one exception: an embedded database that is there and that nobody
uses is started for the look and stopped again.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.catalog.discovery import Discovery
from daemon.cli.database import exists, load, reach, user_of_embedded
from daemon.cli.exits import Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import say, say_json, say_table
from daemon.cli.startup import ask_startup
from daemon.config.loading import find_config
from daemon.config.settings import Address, Settings
from daemon.domain.clock import SystemClock, system_entropy
from daemon.domain.errors import (
    ConfigurationError,
    DiscoveryError,
    FieldError,
    StorageError,
    VerificationUnavailableError,
)
from daemon.domain.provider import Provider
from daemon.domain.role import Role
from daemon.oauth.authorization import tenant_of
from daemon.oauth.outbound import Outbound
from daemon.persistence import keyring, migrations
from daemon.persistence.cipher import TokenCipher
from daemon.persistence.dialing import DatabaseConnection
from daemon.persistence.reencryption import count_ciphertexts
from daemon.sidecar.cluster_trial import try_cluster
from daemon.sidecar.kubernetes_api import KubernetesApi
from daemon.upkeep.sink_files import refused_directory

OK, WARNING, ERROR = "ok", "warning", "error"
_OLDEST_SERVER = 15


@dataclass(frozen=True, slots=True)
class Found:
    """One finding: ``ok``, ``warning`` or ``error``, about what, in words."""

    level: str
    subject: str
    message: str


async def check(call: Invocation, role: Role = Role.ALL) -> Exit:
    """Print all findings and return the exit code: 2 for a bad configuration, 1 for the rest."""
    try:
        settings = load(call, role)
    except ConfigurationError as error:
        _print(call, [Found(ERROR, f.path, f.message) for f in error.findings])
        return Exit.USAGE
    found = [*_configuration(call, settings)]
    if role.refreshes or not settings.callers:
        found += _state_dir(settings)
    found += _sinks(settings)
    found += _listeners(settings, role)
    found += [finding async for finding in _database(settings)]
    found += [finding async for finding in _providers(settings)]
    found += [finding async for finding in _kubernetes(settings)]
    _print(call, found)
    return Exit.FAILED if any(finding.level == ERROR for finding in found) else Exit.DONE


def _print(call: Invocation, found: list[Found]) -> None:
    errors = sum(finding.level == ERROR for finding in found)
    warnings = sum(finding.level == WARNING for finding in found)
    if call.as_json:
        findings = [{"level": f.level, "subject": f.subject, "message": f.message} for f in found]
        say_json({"ok": not errors, "findings": findings})
        return
    say_table(("FINDING", "ABOUT", ""), ((f.level, f.subject, f.message) for f in found))
    say(f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}")


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _configuration(call: Invocation, settings: Settings) -> Iterator[Found]:
    path = find_config(call.config, call.environ, call.working_directory)
    where = "there is no file, so defaults are in force" if path is None else f"{path} is valid"
    yield Found(OK, "configuration", where)
    for warning in settings.warnings:
        subject, _, message = warning.partition(": ")
        yield Found(WARNING, subject, message)
    if not settings.providers:
        message = "none is configured yet, so nothing can be connected; add one under this key"
        yield Found(WARNING, "providers", message)


def _state_dir(settings: Settings) -> Iterator[Found]:
    path = settings.state_dir
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        message = f"{existing} cannot be written by this user; change its owner or set another"
        yield Found(ERROR, "state_dir", message)
    elif existing != path:
        yield Found(OK, "state_dir", f"{path} does not exist yet; the first start makes it")
    elif path.stat().st_mode & 0o077:
        message = f"{path} is open to other users; run: chmod 700 {path}"
        yield Found(WARNING, "state_dir", message)
    else:
        yield Found(OK, "state_dir", str(path))


def _sinks(settings: Settings) -> Iterator[Found]:
    for position, sink in enumerate(settings.sinks):
        directory = sink.path.parent
        if not directory.is_dir():
            message = f"{directory} does not exist; make it, the daemon waits for it"
            yield Found(WARNING, f"sinks[{position}].path", message)
        elif not os.access(directory, os.W_OK | os.X_OK):
            message = f"{directory} cannot be written by this user; change its owner or mode"
            yield Found(ERROR, f"sinks[{position}].path", message)
        elif refused := refused_directory(sink, directory.stat().st_mode):
            yield Found(ERROR, f"sinks[{position}].path", refused.removesuffix("."))
        else:
            yield Found(OK, f"sinks[{position}].path", str(sink.path))


def _listeners(settings: Settings, role: Role) -> Iterator[Found]:
    listen = settings.listen
    runs = ask_startup(listen.ops.address) is not None
    if listen.api.address is not None:
        yield _listener("listen.api", listen.api.address, runs=runs)
    if listen.api.unix_socket is not None:
        yield _unix_socket(listen.api.unix_socket)
    if role.refreshes:
        yield _listener("listen.public", listen.public.address, runs=runs)
    yield _listener("listen.ops", listen.ops.address, runs=runs)


def _unix_socket(path: Path) -> Found:
    if not os.access(path.parent, os.W_OK | os.X_OK):
        message = f"{path.parent} does not exist or cannot be written; create it"
        return Found(ERROR, "listen.api.unix_socket", message)
    return Found(OK, "listen.api.unix_socket", str(path))


def _listener(subject: str, address: Address, *, runs: bool) -> Found:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Found(ERROR, subject, f"{address} cannot be used: {error.strerror}")
            if runs:
                return Found(OK, subject, f"{address}, where a daemon is running")
            message = f"another process listens on {address}; free it or configure another"
            return Found(ERROR, subject, message)
    return Found(OK, subject, f"{address} is free")


async def _database(settings: Settings) -> AsyncIterator[Found]:
    if not exists(settings):
        message = "an embedded PostgreSQL is made under state_dir at the first start"
        yield Found(OK, "database", message)
        yield _keys_at_hand(settings)
        return
    if (
        settings.database_url is None
        and (owner := user_of_embedded(settings.state_dir)) is not None
    ):
        message = f"the daemon (process {owner}) has the embedded PostgreSQL; it is asked there"
        yield Found(OK, "database", message)
    try:
        async with reach(settings) as database:
            yield await _server(database.connection, database.how)
            schema = await _schema(database.connection)
            yield schema
            yield await _keys(settings, database.connection, is_new=schema.level == WARNING)
    except StorageError as error:
        yield Found(ERROR, "database", str(error))


async def _server(connection: DatabaseConnection, how: str) -> Found:
    version = connection.get_server_version()
    if version.major < _OLDEST_SERVER:
        message = f"PostgreSQL {version.major} is too old; {_OLDEST_SERVER} or newer is needed"
        return Found(ERROR, "database", message)
    return Found(OK, "database", f"PostgreSQL {version.major}.{version.minor} answers ({how})")


async def _schema(connection: DatabaseConnection) -> Found:
    try:
        pending = await migrations.pending(connection, migrations.bundled())
    except StorageError as error:
        return Found(ERROR, "schema", str(error))
    if pending:
        names = ", ".join(map(str, pending))
        message = f"to be applied at the next start, or now by 'tokenward migrate': {names}"
        return Found(WARNING, "schema", message)
    return Found(OK, "schema", "is up to date")


async def _keys(settings: Settings, connection: DatabaseConnection, *, is_new: bool) -> Found:
    try:
        at_hand = keyring.find_keyring(settings.encryption_keys, state_dir=settings.state_dir)
        if at_hand is None or is_new:
            return _keys_at_hand(settings)
        cipher = TokenCipher(at_hand.keys, entropy=system_entropy)
        stored = await keyring.stored_keys(connection)
        new = keyring.judge(at_hand, cipher, stored.canaries, stored.in_use)
        counts = await count_ciphertexts(connection)
    except StorageError as error:
        return Found(ERROR, "encryption.keys", str(error))
    if missing := keyring.missing_keys(at_hand.ids, counts):
        message = f"ciphertexts need keys that are not at hand; add them: {', '.join(missing)}"
        return Found(ERROR, "encryption.keys", message)
    if at_hand.warning is not None:
        return Found(WARNING, "encryption.keys", at_hand.warning)
    unused = f"; not used by this database yet: {', '.join(new)}" if new else ""
    return Found(OK, "encryption.keys", f"open what is stored; {at_hand.ids[0]} encrypts{unused}")


def _keys_at_hand(settings: Settings) -> Found:
    try:
        at_hand = keyring.find_keyring(settings.encryption_keys, state_dir=settings.state_dir)
    except StorageError as error:
        return Found(ERROR, "encryption.keys", str(error))
    if at_hand is None:
        message = (
            "none is configured; the first start generates one in state_dir. For production run "
            "'tokenward keys generate' and configure the result"
        )
        return Found(WARNING, "encryption.keys", message)
    if at_hand.warning is not None:
        return Found(WARNING, "encryption.keys", at_hand.warning)
    return Found(OK, "encryption.keys", f"{at_hand.ids[0]} encrypts")


async def _providers(settings: Settings) -> AsyncIterator[Found]:
    if not settings.providers:
        return
    async with Outbound() as session:
        discovery = Discovery(session=session, clock=SystemClock())
        for provider in settings.providers.values():
            yield await _provider(provider, discovery, settings.redirect_uri)


async def _kubernetes(settings: Settings) -> AsyncIterator[Found]:
    if settings.kubernetes is None:
        return
    try:
        message = await try_cluster(settings.kubernetes, KubernetesApi())
        yield Found(OK, "kubernetes", message)
    except VerificationUnavailableError as error:
        # The daemon starts nevertheless: it waits for the cluster, and callers with keys need none.
        message = f"service account tokens cannot be verified from here: {error}"
        yield Found(WARNING, "kubernetes", message)


async def _provider(provider: Provider, discovery: Discovery, redirect_uri: str) -> Found:
    subject = f"providers.{provider.name}"
    example = {
        name: value
        for name, field in provider.fields.items()
        if (value := field.default or next(iter(field.enum), None))
    }
    register = f"register the redirect URI {redirect_uri} there"
    try:
        tenant = tenant_of(provider, example)
    except FieldError:
        names = ", ".join(name for name in provider.fields if name not in example)
        message = f"its URLs are known when a person has given {names}; {register}"
        return Found(OK, subject, message)
    try:
        resolved = await discovery.resolve(tenant)
    except DiscoveryError as error:
        return Found(ERROR, subject, str(error))
    # With templated URLs this is what an ordinary choice of fields leads to.
    return Found(OK, subject, f"tokens come from {resolved.endpoints.token}; {register}")
