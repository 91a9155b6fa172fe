"""What the running process keeps from other processes of its own user, and from its files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from daemon.wiring.hardening import open_state_dir
from tests.support.tokenward import Tokenward

# Root without the rights to look into other processes is like any other user with the same uid.
_RIGHTS = ("--bounding-set", "-sys_ptrace,-perfmon,-sys_admin")
_LIKE_A_USER = ("/usr/bin/setpriv", *_RIGHTS) if os.geteuid() == 0 else ()


def read_as_the_same_user(path: Path) -> bool:
    """Tell whether another process of the same user may read a file."""
    done = subprocess.run([*_LIKE_A_USER, "/bin/cat", str(path)], capture_output=True, check=False)  # noqa: S603 - fixed programs
    return done.returncode == 0


async def test_a_running_daemon_is_closed(daemon: Tokenward) -> None:
    """No core, no look into its memory or environment, and no file for anybody else."""
    daemon.launcher = _LIKE_A_USER
    async with daemon:
        assert daemon.process is not None
        process = Path(f"/proc/{daemon.process.pid}")
        assert not read_as_the_same_user(process / "environ")
        limits = (process / "limits").read_text().splitlines()
        (core,) = [line.split() for line in limits if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"]
        assert "Umask:\t0077" in (process / "status").read_text()
        found = [path for path in daemon.state_dir.rglob("*") if path.stat().st_mode & 0o077]
        assert found == []
        assert daemon.state_dir.stat().st_mode & 0o077 == 0


def test_the_look_works() -> None:
    """A process that does not close itself can be looked into, by the same command."""
    with subprocess.Popen(  # noqa: S603 - fixed programs
        [*_LIKE_A_USER, "/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as open_process:
        assert open_process.stdin is not None
        assert open_process.stdout is not None
        try:
            # What it answers it has become.
            open_process.stdin.write(b"there\n")
            open_process.stdin.flush()
            assert open_process.stdout.readline() == b"there\n"
            assert read_as_the_same_user(Path(f"/proc/{open_process.pid}/environ"))
        finally:
            open_process.kill()


async def test_an_open_state_directory_is_said(daemon: Tokenward) -> None:
    """The start warns, with what to do."""
    daemon.state_dir.mkdir(parents=True)
    daemon.state_dir.chmod(0o755)
    async with daemon:
        pass
    (warned,) = [
        line for line in daemon.logged("configuration_warning") if line["path"] == "state_dir"
    ]
    assert "chmod 700" in warned["detail"]


@pytest.mark.parametrize(("mode", "is_open"), [(0o700, False), (0o750, True), (0o701, True)])
def test_open_state_dir(tmp_path: Path, mode: int, *, is_open: bool) -> None:
    """Whoever else may enter is said; a directory that is not there is nothing to say of."""
    state_dir = tmp_path / "state"
    assert open_state_dir(state_dir) is None
    state_dir.mkdir()
    state_dir.chmod(mode)
    assert bool(open_state_dir(state_dir)) is is_open
