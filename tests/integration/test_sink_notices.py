"""Commands and signals after a change: run as said, for so long, with nothing secret in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.domain.clock import SystemClock
from daemon.domain.sink import PidFileSignal, Sink, SinkSignal
from daemon.upkeep.sink_notices import NoticeError, Notices
from tests.support.waiting import until

_APPLICATION = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: print("told", flush=True))
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.fixture
def notices() -> Notices:
    """What tells, on the machine's clock."""
    return Notices(clock=SystemClock(), limit=10)


def sink(directory: Path, program: str, *words: str) -> Sink:
    """Return a sink whose command is a program in Python."""
    command = (sys.executable, "-c", program, *words)
    return Sink(connection="acme-1", path=directory / "token", command=command)


async def test_a_command_gets_words_and_no_secrets(
    notices: Notices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell reads its words; of the daemon's environment it has nothing."""
    monkeypatch.setenv("ACME_CLIENT_SECRET", "CANARY5ecret")
    program = (
        "import os, sys; out = open(sys.argv[1], 'w');"
        "print(sys.argv[2], os.getcwd(), dict(os.environ), len(os.listdir('/proc/self/fd')),"
        "file=out)"
    )
    told = sink(tmp_path, program, str(tmp_path / "said"), "$(id); *")
    await notices.tell(told, is_there=True)
    said = (tmp_path / "said").read_text()
    assert said.startswith("$(id); * / {")
    assert "CANARY5ecret" not in said
    assert f"'TOKENWARD_SINK_PATH': '{told.path}'" in said
    assert "'TOKENWARD_SINK_CHANGE': 'written'" in said
    # Three of its own, the file, and the listing itself: no socket or file of the daemon's.
    assert said.rstrip().endswith(" 5")
    await notices.tell(told, is_there=False)
    assert "'TOKENWARD_SINK_CHANGE': 'removed'" in (tmp_path / "said").read_text()


async def test_a_command_that_fails(notices: Notices, tmp_path: Path) -> None:
    """Its status is told; what it has printed is not."""
    with pytest.raises(NoticeError, match=r"ended with status 3\.$"):
        await notices.tell(sink(tmp_path, "print('CANARY'); raise SystemExit(3)"), is_there=True)
    program = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(NoticeError, match=r"ended with signal 9\.$"):
        await notices.tell(sink(tmp_path, program), is_there=True)
    missing = replace(sink(tmp_path, ""), command=("/no/such/program",))
    with pytest.raises(NoticeError, match="cannot be run: no such file"):
        await notices.tell(missing, is_there=True)


async def test_a_command_that_hangs_is_killed(tmp_path: Path) -> None:
    """With all that it has started, once its time is over."""
    program = (
        "import subprocess, sys, time; child = subprocess.Popen(['/bin/sleep', '60']);"
        "open(sys.argv[1], 'w').write(f'{child.pid}\\n'); time.sleep(60)"
    )
    pid_file = tmp_path / "pid"
    slow = sink(tmp_path, program, str(pid_file))
    with pytest.raises(NoticeError, match=r"ran longer than 1 s and was killed"):
        await Notices(clock=SystemClock(), limit=1).tell(slow, is_there=True)
    child = Path(f"/proc/{pid_file.read_text().strip()}")
    # A zombie may stay where nobody collects orphans.
    await until(lambda: not child.exists() or "Z (" in (child / "status").read_text())


@contextmanager
def application() -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that says when it was told."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _APPLICATION], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process
        finally:
            process.kill()


def signalling(path: Path) -> Sink:
    """Return a sink that sends SIGUSR1 to the process of a pid file."""
    told = PidFileSignal(pid_file=path, signal=SinkSignal.USR1)
    return Sink(connection="acme-1", path=path.parent / "token", signal=told)


async def test_a_signal(notices: Notices, tmp_path: Path) -> None:
    """The process of the pid file is told."""
    pid_file = tmp_path / "app.pid"
    with application() as process:
        pid_file.write_text(f"{process.pid}\n")
        await notices.tell(signalling(pid_file), is_there=True)
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"


async def test_a_number_that_was_given_away(notices: Notices, tmp_path: Path) -> None:
    """A pid file from before the process that has its number now is about another one."""
    pid_file = tmp_path / "app.pid"
    with application() as process:
        pid_file.write_text(str(process.pid))
        hour_ago = pid_file.stat().st_mtime - 3600
        os.utime(pid_file, (hour_ago, hour_ago))
        with pytest.raises(NoticeError, match="older than the process"):
            await notices.tell(signalling(pid_file), is_there=True)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(NoticeError, match="names no process"):
            await notices.tell(signalling(pid_file), is_there=True)


@pytest.mark.parametrize("content", ["", "1", "0", "-1", "a", "99999999999999999999", "self"])
async def test_what_is_no_process(notices: Notices, tmp_path: Path, content: str) -> None:
    """Init, groups, ourselves and nonsense are never signalled."""
    pid_file = tmp_path / "app.pid"
    pid_file.write_text(str(os.getpid()) if content == "self" else content)
    with pytest.raises(NoticeError, match="does not hold the number"):
        await notices.tell(signalling(pid_file), is_there=True)


async def test_pid_files_that_are_not_trusted(notices: Notices, tmp_path: Path) -> None:
    """Nor is one that everybody may write, a link, a pipe, or none."""
    pid_file = tmp_path / "app.pid"
    with pytest.raises(NoticeError, match="cannot be read"):
        await notices.tell(signalling(pid_file), is_there=True)
    pid_file.write_text("2")
    pid_file.chmod(0o666)
    with pytest.raises(NoticeError, match="not everybody may write"):
        await notices.tell(signalling(pid_file), is_there=True)
    (tmp_path / "link").symlink_to(pid_file)
    with pytest.raises(NoticeError, match="cannot be read"):
        await notices.tell(signalling(tmp_path / "link"), is_there=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoticeError, match="regular file"):
        await notices.tell(signalling(tmp_path / "pipe"), is_there=True)
