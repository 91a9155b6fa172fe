"""Becoming a caller: from the options and the configuration to a client with a place and a key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from daemon.cli.client import ApiClient, UnixSocket, parse_api
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.place import Place, find_place
from daemon.config.settings import Address

_LARGEST_KEY = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """A key, or why there is none: ``hint`` is for the listener's 401."""

    value: str | None
    hint: str = ""


def open_client(call: Invocation) -> ApiClient:
    """Return a client of the daemon that ``call`` means.

    Raises:
        ConfigurationError: the configuration does not say where the daemon is.
        CommandError: ``--api`` is no address, or the key file that was named cannot be read.
    """
    api = call.api or call.environ.get("TOKENWARD_API") or None
    given = _given_key(call)
    if api is not None and given is not None:
        return ApiClient(parse_api(api), key=given)
    place = find_place(call.config, call.environ, call.working_directory)
    key = Key(given) if given is not None else _key_of(place)
    where = parse_api(api) if api is not None else _listener(place, key)
    return ApiClient(where, key=key.value, hint=key.hint)


def _given_key(call: Invocation) -> str | None:
    if call.key_file is not None:
        return _read_key(call.working_directory / call.key_file.expanduser())
    return call.environ.get("TOKENWARD_KEY", "").strip() or None


def _read_key(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            key = file.read(_LARGEST_KEY).strip()
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or "it is not text").lower()
        raise CommandError(
            f"The key file {path} cannot be read ({reason}). Name a file that holds a caller's "
            "key, one line and nothing else.",
            Exit.USAGE,
        ) from error
    if not key:
        raise CommandError(f"The key file {path} is empty. Put a caller's key there.", Exit.USAGE)
    return key


def _key_of(place: Place) -> Key:
    if place.has_callers:
        return Key(
            None,
            "The configuration names its callers, so a key is needed: give a file that holds one "
            "with --key-file, or put it into TOKENWARD_KEY. ('tokenward keys caller NAME' makes "
            "one.)",
        )
    # Imported late: most of what it brings along is of no use to a caller who has a key.
    from daemon.sidecar.access import API_KEY_FILE, read_api_key

    path = place.state_dir / API_KEY_FILE
    try:
        return Key(read_api_key(place.state_dir))
    except FileNotFoundError:
        return Key(
            None,
            f"There is no key in {path}, where the daemon writes one at its first start. Name the "
            "daemon's configuration with --config, or a key with --key-file or TOKENWARD_KEY.",
        )
    except OSError as error:
        return Key(
            None,
            f"The key in {path} cannot be read ({(error.strerror or 'unknown').lower()}). Run this "
            "as the user that the daemon runs as, or give a key with --key-file or TOKENWARD_KEY.",
        )


def _listener(place: Place, key: Key) -> Address | UnixSocket:
    """Prefer TCP; without a key the Unix socket, if it lets this user in."""
    api = place.listen.api
    if api.unix_socket is None:
        return api.address or Address("127.0.0.1", 0)
    lets_us_in = key.value is None and os.geteuid() in api.allowed_uids
    if api.address is None or lets_us_in:
        return UnixSocket(api.unix_socket)
    return api.address
