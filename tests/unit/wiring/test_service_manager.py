"""What systemd passes and is told, against a real datagram socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.domain.errors import ConfigurationError
from daemon.wiring.health import DaemonHealth
from daemon.wiring.service_manager import ServiceManager, Supervision, status_of, supervision
from tests.support.clock import FakeClock

PID = 4711


class Manager:
    """The receiving end."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(0)

    def heard(self) -> list[list[str]]:
        """Return the messages that have come since the last call, as their lines."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Go away."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager at ``tmp_path / notify``."""
    receiving = Manager(str(tmp_path / "notify"))
    yield receiving
    receiving.close()


def telling(directory: Path) -> ServiceManager:
    """Return what tells the manager in ``directory``."""
    told = Supervision(address=str(directory / "notify"))
    return ServiceManager(told, clock=FakeClock(), monotonic=lambda: 5_000_123_999)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Supervision()),
        ({"NOTIFY_SOCKET": ""}, Supervision()),
        ({"NOTIFY_SOCKET": "/"}, Supervision()),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, Supervision()),
        ({"NOTIFY_SOCKET": "/run/n"}, Supervision(address="/run/n")),
        ({"NOTIFY_SOCKET": "@a@b"}, Supervision(address="\0a@b")),
        ({"WATCHDOG_USEC": "30000000"}, Supervision(watchdog=30.0)),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "4711"}, Supervision(watchdog=30.0)),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, Supervision()),
        ({"WATCHDOG_USEC": "0"}, Supervision()),
        ({"WATCHDOG_USEC": "-3"}, Supervision()),
        ({"WATCHDOG_USEC": "soon"}, Supervision()),
        ({"LISTEN_PID": "4711", "LISTEN_FDS": "2"}, Supervision(descriptors=(3, 4))),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, Supervision()),
        ({"LISTEN_FDS": "2"}, Supervision()),
    ],
)
def test_environment(environ: dict[str, str], expected: Supervision) -> None:
    """What is for this process is taken; what is for another, or nonsense, is not."""
    assert supervision(environ, pid=PID) == expected


async def test_a_life(tmp_path: Path, manager: Manager) -> None:
    """Start, reload and stop are told, each at its moment."""
    service = telling(tmp_path)
    with service.reloading():
        pass
    assert manager.heard() == []
    service.started()
    assert manager.heard() == [["READY=1", "STATUS=Ready"]]
    with service.reloading():
        assert manager.heard() == [["RELOADING=1", "MONOTONIC_USEC=5000123"]]
    assert manager.heard() == [["READY=1"]]
    with service.reloading():
        service.stopping()
    told = [lines[0] for lines in manager.heard()]
    assert told == ["RELOADING=1", "STOPPING=1"]
    with service.reloading():
        pass
    assert manager.heard() == []


async def test_the_loop_feeds_the_watchdog(tmp_path: Path, manager: Manager) -> None:
    """At half of the watchdog's time, and no more once the loop's task is gone."""
    clock = FakeClock()
    told = Supervision(address=str(tmp_path / "notify"), watchdog=30.0)
    service = ServiceManager(told, clock=clock)
    away: list[str | None] = ["no route to host\nREADY=1"]
    health = DaemonHealth(cached=lambda: 0, database=lambda: away[0])
    feeding = asyncio.create_task(service.run(health, "ab"))
    await clock.settle()
    starting = ["WATCHDOG=1", "STATUS=Starting: no route to host READY=1"]
    # Longer than two rounds: a start is given up only where the loop hangs.
    assert manager.heard() == [[*starting, "EXTEND_TIMEOUT_USEC=45000000"]]
    service.started()
    health.has_started()
    away[0] = None
    manager.heard()
    await clock.run(60)
    feeds = manager.heard()
    assert [lines[0] for lines in feeds] == ["WATCHDOG=1"] * 4
    assert {lines[1] for lines in feeds} == {"STATUS=Ready: 2 tokens in memory"}
    feeding.cancel()
    await asyncio.wait([feeding])
    await clock.run(60)
    assert manager.heard() == []


async def test_without_a_manager_nothing_is_done() -> None:
    """The task ends at once, and telling is silent."""
    service = ServiceManager(Supervision(), clock=FakeClock())
    service.started()
    await service.run(DaemonHealth(cached=lambda: 0, database=lambda: None), "")


def test_a_manager_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """Nobody at the socket, or an address that cannot be: the daemon goes on."""
    telling(tmp_path).started()
    ServiceManager(Supervision(address="/" + "n" * 200), clock=FakeClock()).stopping()


def test_an_abstract_socket(tmp_path: Path) -> None:
    """The address of systemd's own kind in containers: @name."""
    name = f"@{tmp_path}/notify"
    receiving = Manager(name.replace("@", "\0", 1))
    told = supervision({"NOTIFY_SOCKET": name}, pid=PID)
    ServiceManager(told, clock=FakeClock()).started()
    assert receiving.heard() == [["READY=1", "STATUS=Ready"]]
    receiving.close()


def test_a_full_queue_does_not_hold_us_up(tmp_path: Path) -> None:
    """A manager that reads nothing: messages are dropped, the event loop is not blocked."""
    receiving = Manager(str(tmp_path / "notify"))
    service = telling(tmp_path)
    for _ in range(2000):
        service.started()
    assert 0 < len(receiving.heard()) < 2000
    receiving.close()


@pytest.mark.parametrize(
    ("started", "away", "cached", "expected"),
    [
        (False, None, 0, "Starting"),
        (False, "connection refused", 0, "Starting: connection refused"),
        (True, None, 7, "Ready: 7 tokens in memory"),
        (True, "connection refused", 7, "Ready: 7 tokens in memory"),
    ],
)
def test_status_line(*, started: bool, away: str | None, cached: int, expected: str) -> None:
    """One line for people."""
    health = DaemonHealth(cached=lambda: cached, database=lambda: away)
    if started:
        health.has_started()
    assert status_of(health, cached=cached) == expected


def listening(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_the_socket_that_was_passed(tmp_path: Path) -> None:
    """It is taken where the configuration says the same path, and no child inherits it."""
    path = tmp_path / "api.sock"
    passed = listening(path).detach()
    service = ServiceManager(Supervision(descriptors=(passed,)), clock=FakeClock())
    taken = service.socket_at(path)
    assert taken is not None
    assert taken.fileno() == passed
    assert not taken.get_inheritable()
    taken.close()


@pytest.mark.parametrize("configured", [None, Path("/run/other.sock")])
def test_a_socket_at_another_place(tmp_path: Path, configured: Path | None) -> None:
    """A socket that nobody would serve is an error that names both places."""
    passed = listening(tmp_path / "api.sock").detach()
    service = ServiceManager(Supervision(descriptors=(passed,)), clock=FakeClock())
    with pytest.raises(ConfigurationError, match=r"listen\.api\.unix_socket.*api\.sock"):
        service.socket_at(configured)
    assert ServiceManager(Supervision(), clock=FakeClock()).socket_at(configured) is None
