"""`tokenward demo` as a newcomer meets it: start, click through, read a token, stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.demo.authorization_server.installation import install
from daemon.demo.authorization_server.node import find_node
from tests.support.oauth_flow import browser_session, click_through
from tests.support.oidc_provider import CACHE
from tests.support.polling import eventually
from tests.support.tokenward import ROOT, connect, free_ports


class Demonstration:
    """`tokenward demo` in a state directory of its own, on free ports."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "demo state"
        self.ports = free_ports(4)
        self.printed = directory / "printed"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start with the packages that the other tests have installed already."""
        packages = install(CACHE, find_node()).parent
        place = self.state_dir / "authorization-server"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / packages.name).exists():
            (place / packages.name).symlink_to(packages)
        api, public, ops, provider = map(str, self.ports)
        options = ["--api-port", api, "--public-port", public, "--ops-port", ops]
        options += ["--provider-port", provider, "--token-lifetime", "4s", "--no-browser"]
        with self.printed.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-m", "daemon", "demo", "--state-dir", self.state_dir, *options],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment of every command."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
            # The shell's own settings must not reach the demonstration.
            "TOKENWARD_DATABASE__URL": "postgresql://nobody@127.0.0.1:1/none",
        }

    async def says(self, pattern: str) -> re.Match[str]:
        """Return where the output matches, once it does."""

        async def look() -> re.Match[str] | None:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"it has ended: {self.printed.read_text()}")
            return re.search(pattern, self.printed.read_text())

        return await eventually(look, within=40, what=f"{pattern} in the output")

    async def type(self, command: str) -> str:
        """Type a command that it suggests; return what that prints."""
        done = await asyncio.create_subprocess_shell(
            command,
            cwd=self.directory,
            env={k: v for k, v in self.environ.items() if not k.startswith("TOKENWARD_")},
            stdout=subprocess.PIPE,
        )
        output, _ = await done.communicate()
        assert done.returncode == 0, output
        return output.decode()

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 30)


@pytest.fixture
def demonstration(tmp_path: Path) -> Demonstration:
    """One that is not started yet."""
    return Demonstration(tmp_path)


async def login(url: str, *, session: object) -> str:
    """Log in as somebody at the authorization server."""
    del session
    async with browser_session() as browser:
        return await click_through(browser, url, {"login": "alice", "password": "any"})


async def test_demo_from_start_to_token(demonstration: Demonstration) -> None:
    """The printed URL connects, the printed commands work, refreshes are told, a stop is clean."""
    demonstration.start()
    try:
        url = (await demonstration.says(r"http://localhost:\d+/connect/\S+"))[0]
        suggested = (await demonstration.says(r" {5}(\S.* token demo)\n"))[1]
        curl = (await demonstration.says(r"(curl -H [^\n]+) \\\n +(http://\S+/token)\n")).groups()
        async with browser_session() as browser:
            status, page = await connect(browser, url, login)
        assert (status, "Authorization completed" in page) == (200, True)
        await demonstration.says("Connected")
        assert re.fullmatch(r"\S{20,}\n", await demonstration.type(suggested))
        if shutil.which("curl"):  # a fresh Debian has none, and nothing else here needs it
            assert '"access_token"' in await demonstration.type(" ".join(("command", *curl)))
        await demonstration.says("Refreshed: this is token number 3")
    finally:
        code = await demonstration.stop()
    output = demonstration.printed.read_text()
    assert (code, "Stopped." in output) == (0, True), output
    assert "Traceback" not in output


async def test_connect_waits_for_the_person(demonstration: Demonstration) -> None:
    """Reconnecting is done when the person is back, not when a refresh happens meanwhile."""
    demonstration.start()
    try:
        url = (await demonstration.says(r"http://localhost:\d+/connect/\S+"))[0]
        async with browser_session() as browser:
            await connect(browser, url, login)
        await demonstration.says("token number 2")
        again = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "daemon",
                "--config",
                demonstration.state_dir / "tokenward.yaml",
            ),
            *("connect", "demo", "--id", "demo", "--no-browser", "--output", "json"),
            cwd=demonstration.directory,
            env={k: v for k, v in demonstration.environ.items() if k[:10] != "TOKENWARD_"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert again.stderr is not None
        await again.stderr.readline()
        fresh = (await again.stderr.readline()).decode().strip()
        await demonstration.says("token number 3")
        assert again.stdout is not None
        assert not again.stdout.at_eof()
        async with browser_session() as browser:
            await connect(browser, fresh, login)
        printed, _ = await asyncio.wait_for(again.communicate(), 20)
        assert (again.returncode, json.loads(printed)["status"]) == (0, "active")
    finally:
        assert await demonstration.stop() == 0


async def test_demo_goes_on_where_it_ended(demonstration: Demonstration) -> None:
    """A second start finds the connection authorized and keeps it fresh."""
    demonstration.start()
    try:
        url = (await demonstration.says(r"http://localhost:\d+/connect/\S+"))[0]
        async with browser_session() as browser:
            await connect(browser, url, login)
        await demonstration.says("Connected")
    finally:
        assert await demonstration.stop() == 0
    demonstration.start()
    try:
        await demonstration.says("is authorized from last time")
        await demonstration.says("Refreshed")
    finally:
        assert await demonstration.stop() == 0


def test_demo_names_a_port_that_is_taken(demonstration: Demonstration) -> None:
    """Before anything is started, a taken port is named with the option that changes it."""
    taken = str(demonstration.ports[0])
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "daemon", "demo", "--ops-port", taken, "--public-port", taken],
        cwd=demonstration.directory,
        env=demonstration.environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, f"Port {taken} was given twice" in done.stderr) == (2, True)
