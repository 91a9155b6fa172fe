"""The lock files that `.ci/bootstrap.py` installs from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ENTRY = re.compile(
    r"^([a-z0-9.-]+)==(\S+)((?: ;[^\\\n]*)?)(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL
)
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def locked(profile: str) -> dict[tuple[str, str], str]:
    """Return the entries of a lock file: (name, version) to markers and hashes."""
    text = (ROOT / "requirements" / f"{profile}.lock").read_text(encoding="ascii")
    return {(m[1], m[2]): f"{m[3]}{m[4]}".strip() for m in _ENTRY.finditer(text)}


def canonical(requirement: str) -> str:
    """Return the normalized name (PEP 503) of a requirement's package."""
    match = _NAME.match(requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_dev_holds_all_of_run() -> None:
    """So one environment serves both commands, in whichever order they come."""
    run, dev = locked("run"), locked("dev")
    assert len(run) > 40
    assert {key: dev.get(key) for key in run} == run


def test_fuzz_holds_all_of_dev() -> None:
    """So fuzzing replaces nothing that the tests were run with."""
    dev, fuzz = locked("dev"), locked("fuzz")
    assert {key: fuzz.get(key) for key in dev} == dev
    assert len(fuzz) > len(dev)


def test_everything_is_pinned_by_hash() -> None:
    """No entry can be replaced by another file of the same name."""
    for profile in ("run", "dev", "fuzz"):
        assert [key for key, rest in locked(profile).items() if "--hash=sha256:" not in rest] == []


def test_the_lock_files_follow_the_project() -> None:
    """What `pyproject.toml` asks for is locked; forgetting `make lock` shows here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = project["dependency-groups"]
    extras = project["project"]["optional-dependencies"]
    run = [
        *project["project"]["dependencies"],
        *extras["demo"],
        *extras["embedded"],
        *groups["build"],
    ]
    dev = [*run, *extras["tracing"], *groups["test"], *groups["check"]]
    for profile, wanted in (("run", run), ("dev", dev), ("fuzz", [*dev, *groups["fuzz"]])):
        names = {name for name, _ in locked(profile)}
        assert {canonical(requirement) for requirement in wanted} - names <= {"tokenward"}
