"""Does what the Dockerfile says without Docker: `python -m tests.deploy.image`, as root on Linux.

Each stage is an overlay over this machine in place of the base image; RUN happens in it, COPY goes
from one to the next. Then the container is run as Docker would: as the numeric user, without
capabilities, on a read-only root without a shell, in a network of its own. What this cannot show is
the base image itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs

from daemon.domain.clock import system_entropy
from tests.deploy.dockerfile import Instruction, Stage, stages
from tests.deploy.footprint import footprint
from tests.support.postgres import running_cluster
from tests.support.tokenward import ROOT

_NEW_MOUNTS, _NEW_NETWORK = 0x00020000, 0x40000000
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEVICES = ("full", "null", "random", "urandom", "zero")
_SHELLS = ("bin/sh", "bin/bash", "bin/dash", "usr/bin/sh", "usr/bin/bash", "usr/bin/dash")
_CONFIG = ROOT / "deploy" / "docker" / "tokenward.yaml"


class Machine:
    """One stage: the machine's own files below, what the stage adds in ``upper``."""

    def __init__(self, directory: Path, base: Path) -> None:
        self.upper, self.root, work = directory / "upper", directory / "root", directory / "work"
        for made in (self.upper, self.root, work):
            made.mkdir(parents=True)
        options = f"lowerdir={base}:/,upperdir={self.upper},workdir={work}"
        _do("mount", "-t", "overlay", "overlay", "-o", options, str(self.root))
        _do("mount", "-t", "proc", "proc", str(self.root / "proc"))
        _do("mount", "-t", "tmpfs", "tmpfs", str(self.root / "dev"))
        for device in _DEVICES:
            _do("cp", "-a", f"/dev/{device}", str(self.root / "dev"))
        self.environ = {"PATH": _PATH, "HOME": "/root"}
        self.directory = Path("/")

    def at(self, place: str) -> Path:
        """Return where a path of this machine is outside of it."""
        return self.root / str(self.directory / place).lstrip("/")

    def run(self, command: Sequence[str]) -> None:
        """Run a RUN."""
        # Where packages are found is this machine's business.
        passed = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "SSL_"))}
        inside = f'cd {self.directory} && exec "$@"'
        _do(
            *("chroot", str(self.root), "/bin/sh", "-c", inside, "sh", *command),
            env={**passed, **self.environ},
        )


def build(directory: Path, base: Path) -> Machine:
    """Return the last stage, built."""
    built: dict[str, Machine] = {}
    machine = None
    for number, stage in enumerate(stages()):
        machine = Machine(directory / str(number), base)
        built[stage.name] = machine
        for instruction in stage.instructions:
            _follow(instruction, machine, built)
    assert machine is not None
    return machine


def _follow(instruction: Instruction, machine: Machine, built: Mapping[str, Machine]) -> None:
    match instruction.word:
        case "ENV":
            machine.environ |= instruction.assigned(machine.environ)
        case "WORKDIR":
            machine.directory = Path(instruction.rest)
            machine.at(".").mkdir(parents=True, exist_ok=True)
        case "RUN":
            machine.run(instruction.command)
        case "COPY":
            _copy(instruction, machine, built)


def _copy(instruction: Instruction, machine: Machine, built: Mapping[str, Machine]) -> None:
    *sources, target = instruction.words
    flags = instruction.flags
    source_of = built[flags["from"]].root if "from" in flags else ROOT
    for source in sources:
        place = machine.at(target)
        origin = source_of / source.lstrip("/")
        if origin.is_dir():
            # Times, modes and links as they are: `cp -a` merges into what is there.
            place.mkdir(parents=True, exist_ok=True)
            _do("cp", "-a", f"{origin}/.", str(place))
        else:
            place = place / origin.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            _do("cp", "-a", str(origin), str(place))
        if "from" not in flags:
            for cached in place.rglob("__pycache__") if place.is_dir() else ():
                shutil.rmtree(cached)
        if "chown" in flags:
            _do("chown", "-R", flags["chown"], str(place))


def added(machine: Machine) -> tuple[int, int]:
    """Return the bytes and the number of the files that an image adds to its base."""
    sizes = [
        path.lstat().st_size
        for path in machine.upper.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    return sum(sizes), len(sizes)


class Container:
    """The last stage, run as the compose file runs it."""

    def __init__(self, machine: Machine, stage: Stage, sockets: Path) -> None:
        self._machine = machine
        self._stage = stage
        self._user, self._group = stage.one("USER").rest.split(":")
        root = machine.root
        for place in ("etc/tokenward", "run/secrets", "run/postgres"):
            (root / place).mkdir(parents=True, exist_ok=True)
        state = f"mode=0700,uid={self._user},gid={self._group}"
        _do("mount", "-t", "tmpfs", "-o", state, "tmpfs", str(root / "var/lib/tokenward"))
        _do("mount", "-t", "tmpfs", "tmpfs", str(root / "run/secrets"))
        _do("mount", "-t", "tmpfs", "tmpfs", str(root / "etc/tokenward"))
        _do("mount", "--bind", str(sockets), str(root / "run/postgres"))
        for shell in _SHELLS:
            if (root / shell).exists():
                _do("mount", "--bind", "/dev/null", str((root / shell).resolve()))
        shutil.copy(_CONFIG, root / "etc/tokenward/tokenward.yaml")
        _do("mount", "-o", "remount,ro", str(root))

    def secret(self, name: str, content: str) -> None:
        """Write a secret as compose mounts it."""
        path = self._machine.root / "run/secrets" / name
        path.touch(mode=0o400)
        path.write_text(content)
        os.chown(path, int(self._user), int(self._group))

    def start(self, command: Sequence[str], log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command in it, as its user and without any capability."""
        inside = [
            *("chroot", str(self._machine.root), "setpriv"),
            *("--reuid", self._user, "--regid", self._group, "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--", *command),
        ]
        with (log or Path(os.devnull)).open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - what the Dockerfile says
                inside,
                # Docker's HOME for a user without a name.
                env={**self._machine.environ, "HOME": "/"},
                stdin=subprocess.DEVNULL,
                stdout=output if log else None,
                stderr=output if log else None,
            )

    def health(self) -> int:
        """Return the exit code of the health check."""
        rest = self._stage.one("HEALTHCHECK").rest.partition("CMD ")[2]
        return self.start(json.loads(rest)).wait(timeout=60)


def main(arguments: Sequence[str]) -> None:
    """Build, run, look, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long to look at it idle")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        _inside(given.inside, os.environ["IMAGE_DATABASE_URL"], given.seconds)
        return
    if os.geteuid() != 0:
        sys.exit("This needs root: it mounts file systems, in a namespace of its own.")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        with running_cluster(directory / "postgres") as cluster:
            # In a process of its own, with which its mounts go, however it ends: what is removed
            # afterwards has nobody else's files in it.
            done = subprocess.run(  # noqa: S603 - ourselves
                [sys.executable, "-m", "tests.deploy.image", *arguments, "--inside", name],
                env={**os.environ, "IMAGE_DATABASE_URL": cluster.create_database()},
                check=False,
            )
    sys.exit(done.returncode)


def _inside(directory: Path, database_url: str, idle: float) -> None:
    url, _, query = database_url.partition("?")
    sockets = Path(parse_qs(query)["host"][0])
    # It is our own and for a minute; who may come in is still a matter of the password.
    sockets.chmod(0o711)
    for file in sockets.iterdir():
        file.chmod(0o666)
    _unshare(_NEW_MOUNTS)
    _do("mount", "--make-rprivate", "/")
    # An overlay takes no layer that lies within another.
    place = directory / "stages"
    place.mkdir()
    _do("mount", "-t", "tmpfs", "tmpfs", str(place))
    machine = build(place, _base(place / "base"))
    size, count = added(machine)
    say(f"the image adds {size / 2**20:.1f} MiB in {count} files to its base")
    _unshare(_NEW_NETWORK)
    _do("ip", "link", "set", "lo", "up")
    container = Container(machine, stages()[-1], sockets)
    container.secret("database-url", f"{url}?host=/run/postgres")
    _try(container, directory / "log", idle)


def _base(directory: Path) -> Path:
    """Return a layer that makes this machine look like the base image: its Python and its pip."""
    programs = directory / "usr/local/bin"
    programs.mkdir(parents=True)
    # Its own files may lie in root's home.
    (directory / "root").mkdir(mode=0o755)
    python = Path(sys.executable).resolve()
    (programs / "python").symlink_to(python)
    (programs / "python3").symlink_to(python)
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    (directory / "usr/local/lib").mkdir()
    (directory / "usr/local" / library).symlink_to(Path(sys.base_prefix) / library)
    pip = programs / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    pip.chmod(0o755)
    return directory


def _try(container: Container, log: Path, idle: float) -> None:
    keys = {name: system_entropy(24).hex() for name in ("app-key", "operator-key")}
    key = subprocess.check_output([sys.executable, "-m", "daemon", "keys", "generate"], cwd=ROOT)
    for name, content in {
        **keys,
        "encryption-key": key.decode().split()[-1],
        "acme-client-secret": "nobody asks for it here",
    }.items():
        container.secret(name, content)
    daemon = container.start(["tokenward", "run"], log)
    try:
        began = time.monotonic()
        while container.health() != 0:
            assert time.monotonic() - began < 60, log.read_text()
            assert daemon.poll() is None, log.read_text()
        say(f"healthy after {time.monotonic() - began:.1f} s, without a shell, on a read-only root")
        operator = ["tokenward", "--key-file", "/run/secrets/operator-key", "connections"]
        assert container.start(operator).wait(timeout=30) == 0
        if idle:
            say(str(footprint(daemon.pid, seconds=idle)))
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(timeout=60)
        say(f"SIGTERM: ended with {code}")
        assert code == 0, log.read_text()
        warnings = [line for line in log.read_text().splitlines() if '"warning"' in line]
        assert warnings == [], warnings
    finally:
        daemon.kill()
        daemon.wait()


def _do(*command: str, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, check=False)  # noqa: S603 - mounts, and what the Dockerfile says
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")


def _unshare(what: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(what) != 0:
        sys.exit(f"no namespace of its own: {os.strerror(ctypes.get_errno())}")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
