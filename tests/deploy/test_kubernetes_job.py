"""The Job's own script beside a real daemon: it waits for its token, works, and ends both."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.deploy.manifests import files, pods
from tests.support.token_server import TokenServer
from tests.support.tokenward import Tokenward

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
KEY = "key-in-place-of-a-service-account-token"


def script(daemon: Tokenward, token: Path) -> list[str]:
    """Return what the Job's application runs, with this machine's places."""
    (job,) = pods(files()["overlays/job-sidecar/job.yaml"])
    (app,) = (c for c in job.containers if c["name"] == "app")
    (text,) = app["args"]
    text = text.replace("/var/run/secrets/tokenward/token", str(token))
    return [*app["command"], text.replace("http://127.0.0.1:7420", daemon.api_url)]


@needs_curl
async def test_a_job_ends_its_sidecar(tmp_path: Path, database_url: str) -> None:
    """Started before its sidecar answers, it gets its token, does its work, and both end with 0."""
    caller = {"name": "job", "key": KEY, "connections": ["acme-*"]}
    daemon = Tokenward(tmp_path / "daemon", {"database": {"url": database_url}})
    daemon.settings["callers"] = [{**caller, "permissions": ["token", "manage"]}]
    daemon.settings["listen"]["api"]["quitquitquit"] = True
    token = tmp_path / "token"
    token.write_text(KEY)
    async with TokenServer() as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            tokens = {"refresh_token": "imported"}
            body = {"provider": "acme", "id": "acme-1", "tokens": tokens}
            made = await daemon.request("POST", "/v1/connections", json=body, key=KEY)
            assert made.status == 201, made.content
            assert await daemon.stop() == 0
            job = await asyncio.create_subprocess_exec(
                *script(daemon, token), stdout=asyncio.subprocess.PIPE
            )
            await daemon.start()
            said, _ = await asyncio.wait_for(job.communicate(), 60)
            assert b"the work goes here" in said
            assert job.returncode == 0
            assert await daemon.ended() == 0


@needs_curl
async def test_a_job_that_fails_ends_its_sidecar_too(tmp_path: Path, database_url: str) -> None:
    """Its work fails: the sidecar does not outlive it, and the exit code is the work's."""
    caller = {"name": "job", "key": KEY, "connections": ["acme-*"], "permissions": ["manage"]}
    daemon = Tokenward(tmp_path / "daemon", {"database": {"url": database_url}})
    daemon.settings["callers"] = [caller]
    daemon.settings["listen"]["api"]["quitquitquit"] = True
    token = tmp_path / "token"
    token.write_text(KEY)
    async with daemon:
        *shell, text = script(daemon, token)
        failing = text.replace('echo "the work goes here"', "exit 3").replace("ask --retry", ": ")
        job = await asyncio.create_subprocess_exec(*shell, failing)
        assert await asyncio.wait_for(job.wait(), 60) == 3
        assert await daemon.ended() == 0
