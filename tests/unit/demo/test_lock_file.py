"""What is shipped for npm: exact, verifiable, and from whichever registry npm is set up for."""

from __future__ import annotations

import json

from daemon.demo.authorization_server.installation import SOURCES


def test_every_package_is_pinned_by_its_hash() -> None:
    """Each package of the lock file has an integrity hash and names no registry."""
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert packages
    assert [name for name, package in packages.items() if "integrity" not in package] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_the_lock_file_belongs_to_the_manifest() -> None:
    """The lock file was made from this package.json: `npm ci` refuses anything else."""
    manifest = json.loads((SOURCES / "package.json").read_text())
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"] == manifest["dependencies"]
    assert lock["packages"]["node_modules/oidc-provider"]["version"].startswith("9.")
