"""deploy/systemd: the units are right, and the daemon speaks with a service manager as they say."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.polling import eventually
from tests.support.tokenward import ROOT, Tokenward, unix_session

UNITS = ROOT / "deploy" / "systemd"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")

# The score of `systemd-analyze security`, 0 to 10, less is better. What is left is for a reason.
HIGHEST_EXPOSURE = 1.7
WATCHDOG_SECONDS = 1.0


def settings(unit: str) -> dict[str, list[str]]:
    """Return the assignments of a unit by their name."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units where their program exists."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/tokenward/bin/tokenward", sys.executable)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    assert ANALYZE is not None
    return subprocess.run(  # noqa: S603 - our own units
        [ANALYZE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd
def test_systemd_understands_the_units(units: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    places = [str(units / unit.name) for unit in UNITS.iterdir()]
    done = analyze("verify", *places)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_hardened(units: Path) -> None:
    """`systemd-analyze security` gives it a low exposure."""
    done = analyze("security", "--offline=true", "--no-pager", str(units / "tokenward.service"))
    found = re.search(r"exposure level for tokenward.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= HIGHEST_EXPOSURE


def test_what_the_units_and_the_daemon_agree_on() -> None:
    """The paths are the documented ones, the times are long enough, a core is never written."""
    service, sockets = settings("tokenward.service"), settings("tokenward.socket")
    assert service["Type"] == ["notify"]
    assert service["LimitCORE"] == ["0"]
    # 70 s for a refresh in flight, 20 s for open requests, then its PostgreSQL.
    assert int(service["TimeoutStopSec"][0]) >= 120
    assert service["RestartPreventExitStatus"] == ["2"]
    assert sockets["ListenStream"] == ["/run/tokenward/api.sock"]
    assert service["RuntimeDirectory"] == ["tokenward"]
    # Or the socket would go with the service.
    assert service["RuntimeDirectoryPreserve"] == ["yes"]


class ServiceManager:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0)

    def heard(self) -> list[dict[str, str]]:
        """Return all messages up to now, each as its assignments."""
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in text.split("\n")))

    def count(self, name: str) -> int:
        """Return how many messages have had an assignment."""
        return sum(name in message for message in self.heard())

    def close(self) -> None:
        """Go away."""
        self._socket.close()


class Supervised(Tokenward):
    """A daemon that a service manager has started, with the sockets that it passes."""

    def __init__(self, directory: Path, database_url: str, *, passed: socket.socket | None) -> None:
        super().__init__(directory, {"database": {"url": database_url}})
        self.passed = passed

    def spawn(self) -> None:
        """Start the process as systemd would."""
        self.write_config()
        number = -1 if self.passed is None else self.passed.fileno()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [
                    *(sys.executable, str(Path(__file__).with_name("as_service.py")), str(number)),
                    *("--config", str(self.config_path), "run"),
                ],
                cwd=ROOT,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.directory),
                    "NOTIFY_SOCKET": str(self.directory / "notify"),
                    "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6)),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if self.passed is None else (number,),
            )


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    """A service manager at ``tmp_path / notify``."""
    receiving = ServiceManager(tmp_path / "notify")
    yield receiving
    receiving.close()


@pytest.fixture
def api_socket(tmp_path: Path) -> Iterator[socket.socket]:
    """What a .socket unit makes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "api.sock"))
        sock.listen(16)
        yield sock


@pytest.fixture
async def supervised(
    tmp_path: Path, database_url: str, manager: ServiceManager, api_socket: socket.socket
) -> AsyncIterator[Supervised]:
    """A daemon with a watchdog and a passed socket, not yet started."""
    del manager
    daemon = Supervised(tmp_path, database_url, passed=api_socket)
    daemon.settings["listen"]["api"] |= {
        "unix_socket": str(tmp_path / "api.sock"),
        "allowed_uids": [os.getuid()],
    }
    yield daemon
    await daemon.close()


async def test_a_supervised_life(supervised: Supervised, manager: ServiceManager) -> None:
    """READY comes with /startup, then the watchdog is fed; reload and stop are told."""
    supervised.spawn()

    async def is_ready() -> bool:
        assert supervised.process is not None
        assert supervised.process.poll() is None, supervised.log()
        return manager.count("READY") > 0

    await eventually(is_ready, within=30, what="READY=1")
    assert await supervised.has_started()
    assert [m for m in manager.heard() if "READY" in m] == [{"READY": "1", "STATUS": "Ready"}]

    async def is_fed() -> bool:
        return manager.count("WATCHDOG") >= fed + 3

    fed = manager.count("WATCHDOG")
    await eventually(is_fed, what="the watchdog's food")
    assert manager.heard()[-1]["STATUS"] == "Ready: 0 tokens in memory"

    assert await supervised.reload()
    await eventually(lambda: reloaded(manager), what="the end of the reload")
    messages = manager.heard()
    begun = next(i for i, message in enumerate(messages) if "RELOADING" in message)
    assert int(messages[begun]["MONOTONIC_USEC"]) > 0
    assert any("READY" in message for message in messages[begun:])

    assert await supervised.stop() == 0
    assert manager.count("STOPPING") == 1


async def test_a_start_that_waits_for_its_database(
    supervised: Supervised, manager: ServiceManager
) -> None:
    """It is not READY and says why, and it asks for more time as long as its loop turns."""
    supervised.settings["database"]["url"] = "postgresql://nobody@127.0.0.1:1/nothing"
    supervised.spawn()

    async def asks_for_time() -> bool:
        return manager.count("EXTEND_TIMEOUT_USEC") > 1

    await eventually(asks_for_time, what="a longer start")
    told = manager.heard()[-1]
    assert told["STATUS"].startswith("Starting: ")
    assert int(told["EXTEND_TIMEOUT_USEC"]) > WATCHDOG_SECONDS * 1e6
    assert manager.count("READY") == 0
    assert await supervised.stop() == 0


async def reloaded(manager: ServiceManager) -> bool:
    """Tell whether a reload has begun and ended."""
    return manager.count("RELOADING") == 1 and manager.count("READY") == 2


async def test_a_loop_that_stands_still_feeds_nothing(
    supervised: Supervised, manager: ServiceManager
) -> None:
    """A process that hangs is seen: the watchdog's time passes without a message."""
    await supervised.start()
    supervised.signal(signal.SIGSTOP)
    manager.heard()
    heard = len(manager.messages)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as quiet:
        quiet.settimeout(WATCHDOG_SECONDS)
        quiet.bind("")
        with pytest.raises(TimeoutError):
            quiet.recv(1)
    assert len(manager.heard()) == heard


async def test_a_passed_socket_serves_and_stays(
    supervised: Supervised, api_socket: socket.socket
) -> None:
    """Callers who come before the start are answered by it, and the socket outlives the daemon."""
    path = supervised.directory / "api.sock"
    async with unix_session(path) as early:
        asked = early.get("http://localhost/v1/providers")
        await supervised.start()
        async with asked as answer:
            assert answer.status == 200
    assert await supervised.stop() == 0
    assert path.is_socket()
    assert supervised.log().count("cannot listen") == 0
    await supervised.start()
    assert await status_at(path) == 200
    assert api_socket.fileno() >= 0


async def status_at(path: Path) -> int:
    """Return the status of an answer at a Unix socket."""
    session: ClientSession
    async with unix_session(path) as session, session.get("http://localhost/v1/providers") as got:
        return got.status


async def test_a_socket_that_is_not_configured(supervised: Supervised) -> None:
    """Its callers would wait for ever: the daemon says which path to write where, and ends."""
    supervised.settings["listen"]["api"] |= {"unix_socket": str(supervised.directory / "other")}
    supervised.spawn()
    assert await supervised.ended() == 2
    assert "listen.api.unix_socket" in supervised.log()
    assert "api.sock" in supervised.log()
