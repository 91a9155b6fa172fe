"""Which file is read, what the defaults are, and what becomes of paths."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from daemon.config.loading import find_config, load_settings
from daemon.config.settings import Address, Listen, Log, Refresh
from daemon.domain.errors import ConfigurationError
from tests.support.configuration import Desk


def test_defaults() -> None:
    """Without file, environment and flags everything has the documented default."""
    settings = load_settings(path=None, environ={"HOME": "/home/somebody"})
    assert settings.state_dir == Path("/home/somebody/.local/state/tokenward")
    assert settings.public_url == "http://localhost:7421"
    assert settings.redirect_uri == "http://localhost:7421/callback"
    assert settings.listen == Listen()
    assert settings.listen.api.address == Address("127.0.0.1", 7420)
    assert settings.refresh == Refresh()
    assert settings.refresh.margin == timedelta(seconds=60)
    assert settings.log == Log()
    assert settings.database_url is None
    assert (settings.callers, settings.encryption_keys, settings.return_urls) == ((), (), ())
    assert (settings.providers, settings.warnings) == ({}, ())


@pytest.mark.parametrize(
    "text", ["", "# nothing yet", "providers:\ncallers:\nlog:\nlisten: {api: }"]
)
def test_empty(desk: Desk, text: str) -> None:
    """An empty file, or one with empty sections, is a configuration of defaults."""
    assert desk.load(text) == load_settings(path=None, environ=desk.variables)


def test_find_config(tmp_path: Path) -> None:
    """The flag wins over ``TOKENWARD_CONFIG``, which wins over ``./tokenward.yaml``."""
    assert find_config(None, {"TOKENWARD_CONFIG": ""}, tmp_path) is None
    usual = tmp_path / "tokenward.yaml"
    usual.touch()
    environ = {"TOKENWARD_CONFIG": "~/other.yaml", "HOME": "/home/somebody"}
    assert find_config(None, {}, tmp_path) == usual
    assert find_config(None, environ, tmp_path) == Path("/home/somebody/other.yaml")
    assert find_config(Path("flag.yaml"), environ, tmp_path) == tmp_path / "flag.yaml"
    assert find_config(Path("/flag.yaml"), environ, tmp_path) == Path("/flag.yaml")
    odd = Path("~nobody-of-this-name")
    assert find_config(odd, {}, tmp_path) == tmp_path / odd


def test_named_file_is_missing(tmp_path: Path) -> None:
    """A file that is named and not there is an error, not a reason for defaults."""
    missing = find_config(tmp_path / "absent.yaml", {}, tmp_path)
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: there is no such file"):
        load_settings(path=missing, environ={})


def test_everything_at_once(desk: Desk) -> None:
    """All that is wrong is reported together, whatever section it stands in."""
    text = """
    public_url: http://tokens.example
    refresh: {at: 2, margin: 1w}
    listen: {api: {address: 0.0.0.0:7420}}
    providers:
      acme: {issuer: http://a.example, client_secret: {env: NOWHERE}, nonsense: 1}
      other: {}
    """
    found = {one.path for one in desk.findings(text, environ={"TOKENWARD_NONSENSE": "1"})}
    assert found == {
        "public_url",
        "refresh.at",
        "refresh.margin",
        "listen.api.address",
        "providers.acme.issuer",
        "providers.acme.client_id",
        "providers.acme.client_secret",
        "providers.acme.nonsense",
        "providers.other",
        "providers.other.client_id",
        "providers.other.client_secret",
        "TOKENWARD_NONSENSE",
    }


def test_relative_paths(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path is relative to the file in which it stands; elsewhere to the working directory."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    text = "state_dir: state\nlisten: {api: {unix_socket: run/api.sock}}"
    in_file = desk.load(text)
    assert in_file.state_dir == desk.directory / "state"
    assert in_file.listen.api.unix_socket == desk.directory / "run/api.sock"
    by_flag = desk.load(text, overrides={"state_dir": Path("flagged")})
    assert by_flag.state_dir == working / "flagged"
    by_variable = desk.load(text, environ={"TOKENWARD_STATE_DIR": "~/there"})
    assert by_variable.state_dir == Path("/home/somebody/there")


def test_unix_socket_alone(desk: Desk) -> None:
    """The api listener may have a Unix socket and no address."""
    text = "listen: {api: {address: null, unix_socket: /run/t.sock, allowed_uids: [0, 1000, 0]}}"
    api = desk.load(text).listen.api
    assert (api.address, api.unix_socket, api.allowed_uids) == (
        None,
        Path("/run/t.sock"),
        (0, 1000),
    )


def test_opened_listeners(desk: Desk) -> None:
    """``public`` and ``ops`` open to others when told so; one port serves two real hosts."""
    text = """
    public_url: https://tokens.example
    listen:
      public: {address: "0.0.0.0:8080", allow_non_loopback: true}
      ops: {address: "127.0.0.2:7420"}
    """
    listen = desk.load(text).listen
    assert listen.public.allow_non_loopback
    assert listen.ops.address == Address("127.0.0.2", 7420)


def test_ports_chosen_by_the_system(desk: Desk) -> None:
    """Listeners with port 0 do not clash."""
    text = "listen: {api: {address: 127.0.0.1:0}, public: {address: 127.0.0.1:0}}"
    assert desk.findings(text) == ()


def test_public_url_warning(desk: Desk) -> None:
    """A public listener on another port than the default ``public_url`` gives a warning."""
    moved = "listen: {public: {address: 127.0.0.1:8000}}"
    (warning,) = desk.load(moved).warnings
    assert warning.startswith("public_url: is http://localhost:7421 by default")
    assert desk.load(f"{moved}\npublic_url: http://localhost:8000").warnings == ()
