"""``tokenward demo``: the real daemon beside a local authorization server, explained as it runs."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from daemon.cli.client import ApiClient, RefusedError, connection_path
from daemon.cli.connecting import open_in_browser
from daemon.cli.exits import CommandError, Exit
from daemon.cli.invocation import Invocation
from daemon.cli.printing import console_for, say
from daemon.cli.running import run_daemon
from daemon.config.loading import load_settings
from daemon.config.settings import Address
from daemon.demo.authorization_server.installation import is_installed
from daemon.demo.authorization_server.node import find_node
from daemon.demo.example import PROVIDER, Example, Ports, prepare
from daemon.domain.clock import system_entropy
from daemon.sidecar.access import read_api_key
from daemon.wiring.assembly import Daemon

CONNECTION = "demo"
_POLL_SECONDS = 0.5
_SHORTEST_LIFETIME = timedelta(seconds=2)
_OPTIONS: Mapping[str, str] = {
    "api": "--api-port",
    "public": "--public-port",
    "ops": "--ops-port",
    "authorization_server": "--provider-port",
}


def demo(call: Invocation, example: Example, *, browser: bool) -> None:
    """Run until Ctrl-C or SIGTERM. For the main thread.

    Raises:
        CommandError: a port is taken, or the lifetime is too short to be seen.
        AuthorizationServerError: no Node.js, no network for the first start, …
    """
    if example.token_lifetime < _SHORTEST_LIFETIME:
        raise CommandError(
            "--token-lifetime must be at least 2s, so that tokens can be read.", Exit.USAGE
        )
    _require_free(example.ports)
    find_node()
    server = prepare(example, entropy=system_entropy)
    if not is_installed(example.server_directory):
        say("Installing the authorization server (once; it takes a network and some seconds) …")
    with server:
        # Nothing of the shell's TOKENWARD_… variables: they may point at a real database.
        home = {"HOME": call.environ.get("HOME", "")}
        settings = load_settings(path=example.config, environ=home)
        narrator = _Narrator(example, call.environ if browser else {})
        with closing(example.log.open("a", encoding="utf-8")) as stream:
            run_daemon(settings, load=None, stream=stream, on_started=narrator.tell)
    say("Stopped. The next 'tokenward demo' goes on where this one ended; to begin afresh, remove")
    say(f"  {example.state_dir}")


def _require_free(ports: Ports) -> None:
    wanted = {name: getattr(ports, name) for name in _OPTIONS}
    for name, port in wanted.items():
        if list(wanted.values()).count(port) > 1:
            raise CommandError(f"Port {port} was given twice; each needs its own.", Exit.USAGE)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise CommandError(
                    f"Port {port} cannot be used ({(error.strerror or 'unknown').lower()}). Stop "
                    f"what listens there (another demonstration?), or choose another port with "
                    f"{_OPTIONS[name]}.",
                    Exit.USAGE,
                ) from error


@dataclass(slots=True)
class _Narrator:
    """Tells what is there and what happens. ``environ`` is empty where no browser is wanted."""

    example: Example
    environ: Mapping[str, str] = field(repr=False)
    _known: Mapping[str, Any] | None = None
    _url_until: datetime | None = None

    async def tell(self, daemon: Daemon) -> None:
        """Introduce everything, then follow the connection until cancelled."""
        clock = daemon.world.clock
        client = ApiClient(
            Address("127.0.0.1", self.example.ports.api), key=read_api_key(self.example.state_dir)
        )
        self._known, url = await asyncio.to_thread(self._begin, client)
        self._introduce()
        self._invite(url)
        self._suggest()
        if url is not None and self.environ:
            await asyncio.to_thread(open_in_browser, url, self.environ)
        while True:
            await clock.sleep(_POLL_SECONDS)
            try:
                await asyncio.to_thread(self._follow, client, clock.now())
            except RefusedError as error:
                if error.exit_code is not Exit.NO_SUCH_CONNECTION:
                    raise
                self._begin_anew(await asyncio.to_thread(self._begin, client), clock.now())
            except CommandError as error:
                self._notice(clock.now(), f"The daemon does not answer now: {error}")

    def _begin(self, client: ApiClient) -> tuple[Mapping[str, Any], str | None]:
        """Return the connection, made where it is missing, and the URL to connect it."""
        try:
            known = client.get(connection_path(CONNECTION))
        except RefusedError as error:
            if error.exit_code is not Exit.NO_SUCH_CONNECTION:
                raise
            known = client.post("/v1/connections", {"provider": PROVIDER, "id": CONNECTION})
        if known["status"] in ("active", "failing"):
            return known, None
        return known, self._fresh_url(client)

    def _begin_anew(self, begun: tuple[Mapping[str, Any], str | None], now: datetime) -> None:
        self._known, url = begun
        self._notice(now, f"The connection '{CONNECTION}' was removed, and made again. Connect at:")
        say(f"     {url}")

    def _fresh_url(self, client: ApiClient) -> str:
        answer = client.post(connection_path(CONNECTION, "authorize"), {})
        self._url_until = datetime.fromisoformat(answer["expires_at"])
        return str(answer["connect_url"])

    def _introduce(self) -> None:
        ports = self.example.ports
        print_line = console_for(sys.stdout).print
        print_line()
        print_line("tokenward demo: everything runs on this machine and is only for trying out.")
        print_line()
        print_line("  tokens for programs   ", f"http://127.0.0.1:{ports.api}", sep="")
        print_line("  pages to connect      ", self.example.public_url, sep="")
        print_line("  pages for operators   ", f"http://127.0.0.1:{ports.api}/", sep="")
        print_line("  metrics               ", f"http://127.0.0.1:{ports.ops}/metrics", sep="")
        server = f"http://127.0.0.1:{ports.authorization_server}"
        print_line("  authorization server  ", server, sep="")
        print_line("  configuration         ", str(self.example.config), sep="", soft_wrap=True)
        print_line("  log                   ", str(self.example.log), sep="", soft_wrap=True)
        print_line()

    def _invite(self, url: str | None) -> None:
        if url is None:
            say(f"The connection '{CONNECTION}' is authorized from last time. To do it again:")
            self._command(f"connect {PROVIDER} --id {CONNECTION}")
        else:
            say("1. Open this URL in a browser, log in with any name and any password, and allow")
            say("   the access:")
            console_for(sys.stdout).print(f"     {url}", style="bold cyan", soft_wrap=True)
        say()

    def _suggest(self) -> None:
        state_dir = shlex.quote(str(self.example.state_dir))
        lifetime = int(self.example.token_lifetime.total_seconds())
        say("2. Then try this in another terminal. The current access token:")
        self._command(f"token {CONNECTION}")
        say("   The same for a program, over HTTP:")
        say(f'     curl -H "Authorization: Bearer $(cat {state_dir}/api.key)" \\')
        api = f"http://127.0.0.1:{self.example.ports.api}"
        say(f"       {api}/v1/connections/{CONNECTION}/token")
        say("   A request to the provider's API with that token put in:")
        say(f'     curl -H "Authorization: Bearer $(cat {state_dir}/api.key)" \\')
        say(f"       {api}/v1/connections/{CONNECTION}/proxy/me")
        say(f"   The operators' pages, where {state_dir}/api.key holds the key to log in with:")
        say(f"     {api}/")
        say(f"   Tokens live {lifetime} s; watch the next refresh come and go:")
        self._command("connections")
        say("   Metrics, for example how many refreshes there were:")
        ops = f"http://127.0.0.1:{self.example.ports.ops}"
        say(f"     curl -s {ops}/metrics | grep tokenward_refreshes_total")
        say()
        say("3. Stop with Ctrl-C. What happens meanwhile:")
        say()

    def _follow(self, client: ApiClient, now: datetime) -> None:
        before, after = self._known or {}, client.get(connection_path(CONNECTION))
        self._known = after
        changed = after["status"] != before.get("status")
        if after["status"] == "active" and (changed or after["generation"] != before["generation"]):
            self._tell_token(before, after, now)
        elif changed and after["status"] == "reauthorization_required":
            self._notice(now, "The grant has ended. Connect again at this URL:")
            say(f"     {self._fresh_url(client)}")
        elif changed and after["last_error"] is not None:
            self._notice(now, f"A refresh has failed: {after['last_error']['description']}")
        elif after["status"] != "active" and self._url_until and now >= self._url_until:
            self._notice(now, "The connect URL has expired. This one is new:")
            say(f"     {self._fresh_url(client)}")

    def _tell_token(
        self, before: Mapping[str, Any], after: Mapping[str, Any], now: datetime
    ) -> None:
        generation = after["generation"]
        if before.get("status") in ("active", "failing"):
            self._notice(now, f"Refreshed: this is token number {generation} of this connection.")
            return
        self._notice(now, "Connected. From now on the token is refreshed before it expires.")
        say("          The connect URL was for one use; a new one comes from:")
        self._command(f"connect {PROVIDER} --id {CONNECTION}")

    def _command(self, arguments: str) -> None:
        program = "tokenward" if shutil.which("tokenward") else f"{sys.executable} -m daemon"
        say(f"     {program} --config {shlex.quote(str(self.example.config))} {arguments}")

    def _notice(self, now: datetime, text: str) -> None:
        console_for(sys.stdout).print(f"{now.astimezone():%H:%M:%S}  {text}", soft_wrap=True)


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the demonstration's own directory, beside that of the daemon."""
    return Path(environ.get("HOME") or "/") / ".local" / "state" / "tokenward" / "demo"
