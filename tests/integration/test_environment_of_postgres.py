"""What the embedded PostgreSQL, and whatever is started like it, finds of the daemon's own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from daemon.persistence.embedded.identity import Identity, RunAs, spawn


def test_it_finds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its environment nor among its open files."""
    monkeypatch.setenv("ACME_CLIENT_SECRET", "CANARY5ecret")
    monkeypatch.setenv("PGPASSWORD", "CANARY5ecret")
    uid, gid = os.geteuid(), os.getegid()
    myself = Identity(run_as=RunAs.SELF, uid=uid, gid=gid, owner=uid, owner_group=gid)
    (tmp_path / "open").write_text("CANARY5ecret")
    said = tmp_path / "said"
    with (tmp_path / "open").open("rb"), said.open("wb") as output:
        process = spawn(
            ["/bin/sh", "-c", "/usr/bin/env; ls -l /proc/self/fd; umask"],
            identity=myself,
            directory=tmp_path,
            death_signal=signal.SIGKILL,
            output=output,
        )
        assert process.wait(10) == 0
    text = said.read_text()
    assert "PATH=" in text
    assert "CANARY" not in text
    assert "PGPASSWORD" not in text
    assert str(tmp_path / "open") not in text
    assert text.splitlines()[-1] == "0077"
