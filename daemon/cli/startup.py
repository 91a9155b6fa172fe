"""``tokenward wait``: until the daemon has started, as its ops listener tells."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from ipaddress import ip_address

from daemon.cli.calls import read_duration
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.place import find_place
from daemon.cli.printing import say, say_json
from daemon.config.settings import Address

_POLL_SECONDS = 0.1
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Startup:
    """What ``/startup`` says."""

    started: bool
    reasons: tuple[str, ...] = ()


def wait(call: Invocation, longest: str) -> None:
    """Return once the daemon has started.

    Raises:
        CommandError: it has not within ``longest`` (exit code 5), with what is known of why.
    """
    seconds = read_duration(longest, option="--max").total_seconds()
    address = find_place(call.config, call.environ, call.working_directory).listen.ops.address
    deadline = time.monotonic() + seconds
    while True:
        startup = ask_startup(address)
        if startup is not None and startup.started:
            break
        if time.monotonic() >= deadline:
            raise CommandError(_why(startup, address, longest), Exit.UNAVAILABLE)
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
    if call.as_json:
        say_json({"started": True})
    else:
        say("The daemon has started.")


def ask_startup(address: Address) -> Startup | None:
    """Return what the ops listener at ``address`` says; ``None`` where none answers."""
    connection = http.client.HTTPConnection(_host(address), address.port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/startup")
        response = connection.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    # A problem of another listener has a number there.
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    reasons = body.get("reasons")
    texts = tuple(map(str, reasons)) if isinstance(reasons, list) else ()
    return Startup(response.status == http.client.OK, texts)


def _host(address: Address) -> str:
    """Return where to ask a listener that may be bound to every address of the machine."""
    try:
        parsed = ip_address(address.host)
    except ValueError:
        return address.host
    if not parsed.is_unspecified:
        return address.host
    return "::1" if parsed.version == 6 else "127.0.0.1"  # noqa: PLR2004 - IPv6


def _why(startup: Startup | None, address: Address, longest: str) -> str:
    if startup is None:
        return (
            f"No daemon answers at {address} (listen.ops) after {longest}. Start it with "
            "'tokenward run', and look at its log if it ends again."
        )
    return (
        f"The daemon runs but has not finished starting after {longest}: "
        f"{'; '.join(startup.reasons)}. Look at its log, or wait longer with --max."
    )
