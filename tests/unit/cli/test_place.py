"""A caller finds the daemon without being able to start it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cli.place import find_place
from daemon.config.settings import Address
from daemon.domain.errors import ConfigurationError


def write(directory: Path, text: str) -> Path:
    """Write a configuration."""
    path = directory / "tokenward.yaml"
    path.write_text(text)
    return path


def test_secrets_of_the_service_are_not_needed(tmp_path: Path) -> None:
    """A provider's secret that is missing in this shell does not hinder a caller."""
    write(
        tmp_path,
        "state_dir: state\n"
        "listen: {api: {address: 127.0.0.1:9}}\n"
        "providers: {a: {issuer: https://a.example, client_secret: {env: NOWHERE}}}\n",
    )
    place = find_place(None, {"HOME": "/home/a"}, tmp_path)
    assert place.state_dir == tmp_path / "state"
    assert place.listen.api.address == Address("127.0.0.1", 9)
    assert not place.has_callers


def test_the_environment_counts(tmp_path: Path) -> None:
    """Variables override the file, as they do for the daemon; callers are noticed."""
    write(tmp_path, "callers: [{name: a}]\n")
    environ = {"HOME": "/home/a", "TOKENWARD_LISTEN__API__ADDRESS": "127.0.0.1:8"}
    place = find_place(None, environ, tmp_path)
    assert place.listen.api.address == Address("127.0.0.1", 8)
    assert place.state_dir == Path("/home/a/.local/state/tokenward")
    assert place.has_callers


def test_a_bad_listener_is_found(tmp_path: Path) -> None:
    """What concerns a caller is judged, and named by its path."""
    path = write(tmp_path, "listen: {api: {address: 0.0.0.0:7420}}\nrefresh: {at: 7}\n")
    with pytest.raises(ConfigurationError) as caught:
        find_place(path, {"HOME": "/home/a"}, tmp_path)
    assert [finding.path for finding in caught.value.findings] == ["listen.api.address"]
