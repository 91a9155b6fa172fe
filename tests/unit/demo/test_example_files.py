"""The demonstration's files are a configuration like any other."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from daemon.config.loading import load_settings
from daemon.demo.example import Example, Ports, prepare


def entropy(size: int) -> bytes:
    """Return bytes that are always the same."""
    return bytes(range(size))


def test_the_configuration_loads_without_warning(tmp_path: Path) -> None:
    """What is written says what was asked for, and the daemon has nothing to remark."""
    example = Example(
        state_dir=tmp_path / "a: #b", ports=Ports(api=1, public=2, ops=3, authorization_server=4)
    )
    prepare(example, entropy=entropy)
    settings = load_settings(path=example.config, environ={})
    assert settings.warnings == ()
    assert settings.state_dir == example.state_dir
    assert settings.redirect_uri == "http://localhost:2/callback"
    assert settings.refresh.margin == timedelta(seconds=10)
    assert settings.providers["demo"].issuer == "http://127.0.0.1:4"


def test_the_secret_is_kept(tmp_path: Path) -> None:
    """A second start uses the secret of the first, which only its owner can read."""
    example = Example(state_dir=tmp_path)
    first = prepare(example, entropy=entropy)
    second = prepare(example, entropy=lambda size: b"\x07" * size)
    assert first.client_secret == second.client_secret == example.secret.read_text().strip()
    assert example.secret.stat().st_mode & 0o077 == 0
    assert example.config.stat().st_mode & 0o077 == 0
