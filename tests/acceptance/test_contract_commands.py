"""Commands of contract 7 that need a provider which answers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process

from tests.support.acme_service import AcmeService, walk
from tests.support.tokenward import ROOT, Tokenward


async def typed(daemon: Tokenward, *arguments: str) -> Process:
    """Start a command beside the daemon; Ctrl-C reaches it, however these tests were started."""
    return await asyncio.create_subprocess_exec(
        *("env", "--default-signal=INT", sys.executable),
        *("-m", "daemon", "--config", str(daemon.config_path), *arguments),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(daemon.directory)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )


async def ended(daemon: Tokenward, *arguments: str) -> tuple[int | None, str, str]:
    """Run a command to its end; return exit code and what it printed."""
    process = await typed(daemon, *arguments)
    printed, complained = await process.communicate()
    return process.returncode, printed.decode(), complained.decode()


async def line_with(process: Process, pattern: str) -> str:
    """Return the match in the first line on stdout that has one."""
    assert process.stdout is not None
    async with asyncio.timeout(30):
        async for line in process.stdout:
            if match := re.search(pattern, line.decode()):
                return match[0]
    raise AssertionError(f"the command ended without {pattern}")


async def test_commands_on_a_living_connection(daemon: Tokenward) -> None:
    """`connect` ends with the survivor, `test` with the API's word, `events --follow` goes on."""
    async with AcmeService() as acme:
        daemon.settings["providers"] = {"acme": acme.provider()}
        async with daemon:
            complained = b""
            for name in ("first", "second"):
                process = await typed(daemon, "connect", "acme", "--id", name, "--no-browser")
                url = await line_with(process, r"http://localhost:\d+/connect/\S+")
                assert (await walk(url)).status == 303
                printed, complained = await process.communicate()
                assert process.returncode == 0
                # The second has the account of the first, which goes on with it.
                assert re.search(r"^id +first$", printed.decode(), re.MULTILINE)
            assert "connected already, as first" in complained.decode()

            code, printed_text, _ = await ended(daemon, "test", "first")
            assert (code, "Name 1 (1@acme.example)" in printed_text) == (0, True)
            following = await typed(daemon, "events", "first", "--follow")
            await line_with(following, "connection.tested")
            assert (await ended(daemon, "refresh", "first"))[0] == 0
            await line_with(following, "token.refreshed")
            following.send_signal(signal.SIGINT)
            await following.communicate()
            assert following.returncode == 0

            acme.end_grant("1")
            code, _, complaint = await ended(daemon, "test", "first")
            assert (code, "first failed its test" in complaint) == (1, True)
            assert (await ended(daemon, "token", "first"))[0] == 4
            assert (await ended(daemon, "disconnect", "first"))[0] == 0
