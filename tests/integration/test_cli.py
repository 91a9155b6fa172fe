"""The real commands as processes, against a real daemon with its embedded database."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from daemon import __version__
from daemon.cli.client import ApiClient
from daemon.config.settings import Address
from tests.support.tokenward import Tokenward, free_ports

ACCESS_TOKEN = "at-planted-access-token"
REFRESH_TOKEN = "rt-planted-refresh-token"
# Nobody listens there: refreshing fails at once.
DEAD = "http://127.0.0.1:1"


def tokenward(
    *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "daemon", *arguments],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(cwd),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(environ or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Shell:
    """A directory with a running daemon's configuration, where commands are typed."""

    def __init__(self, daemon: Tokenward) -> None:
        self.daemon = daemon
        self.directory = daemon.directory

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, which finds the configuration by itself."""
        return tokenward(*arguments, cwd=self.directory, environ=environ)

    def fails(self, code: int, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a command that must end with ``code``; return what it complains of."""
        done = self.run(*arguments, environ=environ)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert ACCESS_TOKEN not in done.stdout + done.stderr
        return done.stderr

    def prints(self, *arguments: str) -> str:
        """Run a command that must succeed; return what it prints."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A daemon with one imported and one pending connection."""
    daemon = Tokenward(
        tmp_path_factory.mktemp("cli"),
        {
            "providers": {
                "acme": {
                    "authorization_endpoint": f"{DEAD}/authorize",
                    "token_endpoint": f"{DEAD}/token",
                    "client_id": "cli",
                    "client_secret": {"env": "ACME_SECRET"},
                    "scopes": ["read"],
                }
            }
        },
    )
    daemon.settings["listen"]["api"] |= {
        "unix_socket": "api.sock",
        "allowed_uids": [os.geteuid()],
    }
    # The secret is in the daemon's environment only, as in a service.
    daemon.write_config()
    with daemon.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", "run"],
            cwd=daemon.directory,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(daemon.directory),
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "ACME_SECRET": "a-client-secret",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        made = Shell(daemon)
        assert made.prints("wait", "--max", "30s") == "The daemon has started.\n", daemon.log()
        _fill(daemon)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    assert code == 0, daemon.log()


def _fill(daemon: Tokenward) -> None:
    parts = urlsplit(daemon.api_url)
    client = ApiClient(Address(str(parts.hostname), int(parts.port or 0)), key=daemon.key)
    tokens = {
        "refresh_token": REFRESH_TOKEN,
        "access_token": ACCESS_TOKEN,
        "expires_at": "2099-01-01T00:00:00Z",
    }
    body = {"provider": "acme", "id": "acme-1", "metadata": {"team": "7"}, "tokens": tokens}
    client.post("/v1/connections", body)
    client.post("/v1/connections", {"provider": "acme", "id": "acme-2"})


def test_token_is_printed_bare(shell: Shell) -> None:
    """`token` prints the access token and a line break, for `$(…)`."""
    assert shell.prints("token", "acme-1") == f"{ACCESS_TOKEN}\n"
    assert shell.prints("token", "acme-1", "--min-ttl", "5m") == f"{ACCESS_TOKEN}\n"


def test_token_in_other_shapes(shell: Shell) -> None:
    """`--header` is what curl takes, `--json` the token body."""
    assert shell.prints("token", "acme-1", "--header") == f"Authorization: Bearer {ACCESS_TOKEN}\n"
    body = json.loads(shell.prints("token", "acme-1", "--json"))
    assert (body["access_token"], body["connection"]) == (ACCESS_TOKEN, "acme-1")
    assert json.loads(shell.prints("--output", "json", "token", "acme-1"))["generation"] == 1


def test_exit_codes(shell: Shell) -> None:
    """Unknown is 3, unauthorized 4, away 5, misused 2, and each error says what to do."""
    assert "(unknown_connection)" in shell.fails(3, "token", "nobody")
    assert "(unknown_connection)" in shell.fails(3, "show", "nobody")
    assert "tokenward connect" in shell.fails(4, "token", "acme-2")
    assert "Is the daemon running?" in shell.fails(5, "--api", "127.0.0.1:1", "token", "acme-1")
    assert "--min-ttl must be" in shell.fails(2, "token", "acme-1", "--min-ttl", "soon")
    assert "not both" in shell.fails(2, "token", "acme-1", "--json", "--header")
    assert "No such command" in shell.fails(2, "tokn")


def test_refused_keys(shell: Shell, tmp_path: Path) -> None:
    """A wrong key is 1, with what to do; a key file that is not there is 2."""
    wrong = {"TOKENWARD_KEY": "wrong-key-of-a-caller-that-nobody-knows"}
    message = shell.fails(1, "token", "acme-1", environ=wrong)
    assert "--key-file" in message
    assert wrong["TOKENWARD_KEY"] not in message
    assert "cannot be read" in shell.fails(2, "token", "acme-1", "--key-file", "absent")
    elsewhere = tokenward("--api", shell.daemon.api_url, "token", "acme-1", cwd=tmp_path)
    assert elsewhere.returncode == 1
    assert "There is no key in" in elsewhere.stderr


def test_key_and_place_by_hand(shell: Shell, tmp_path: Path) -> None:
    """With a place and a key no configuration is needed, by options or by variables."""
    key_file = tmp_path / "key"
    key_file.write_text(shell.daemon.key + "\n")
    by_option = tokenward(
        "token", "acme-1", "--api", shell.daemon.api_url, "--key-file", "key", cwd=tmp_path
    )
    variables = {"TOKENWARD_API": shell.daemon.api_url, "TOKENWARD_KEY": shell.daemon.key}
    by_variable = tokenward("token", "acme-1", cwd=tmp_path, environ=variables)
    assert by_option.stdout == by_variable.stdout == f"{ACCESS_TOKEN}\n"


def test_unix_socket_needs_no_key(shell: Shell, tmp_path: Path) -> None:
    """An allowed user comes through the Unix socket without a key."""
    socket = f"unix:{shell.directory / 'api.sock'}"
    done = tokenward("--api", socket, "token", "acme-1", cwd=tmp_path)
    assert done.stdout == f"{ACCESS_TOKEN}\n", done.stderr


def test_connections(shell: Shell) -> None:
    """The table has a row for each connection; options narrow it; JSON has the whole bodies."""
    lines = shell.prints("connections").splitlines()
    assert lines[0].split()[:3] == ["ID", "PROVIDER", "STATUS"]
    assert sorted(line.split()[0] for line in lines[1:]) == ["acme-1", "acme-2"]
    assert "acme-1" not in shell.prints("connections", "--status", "pending")
    assert shell.prints("connections", "--provider", "other") == "No connection matches.\n"
    assert "status is one of" in shell.fails(2, "connections", "--status", "odd")
    listed = json.loads(shell.prints("connections", "--query", "acme-1", "--output", "json"))
    assert [c["metadata"] for c in listed["connections"]] == [{"team": "7"}]


def test_show_has_no_secret(shell: Shell) -> None:
    """One connection is shown whole, without its tokens."""
    shown = shell.prints("show", "acme-1")
    assert re.search(r"^metadata +team=7$", shown, re.MULTILINE)
    assert ACCESS_TOKEN not in shown
    assert REFRESH_TOKEN not in shown
    assert json.loads(shell.prints("show", "acme-1", "--output=json"))["id"] == "acme-1"


def test_refresh_that_fails(shell: Shell) -> None:
    """A provider that does not answer makes `refresh` end with 5."""
    assert "(token_unavailable)" in shell.fails(5, "refresh", "acme-1")


def test_providers(shell: Shell) -> None:
    """The redirect URI to register is shown, for all and for one."""
    redirect_uri = shell.daemon.redirect_uri
    assert redirect_uri in shell.prints("providers")
    one = json.loads(shell.prints("providers", "acme", "--output", "json"))
    assert one["redirect_uri"] == redirect_uri
    assert "acme" in shell.fails(1, "providers", "other")


def test_connect_gives_up_in_time(shell: Shell) -> None:
    """`connect` prints the URL, reconnects an id that exists, and ends with 4 if nobody comes."""
    done = shell.run("connect", "acme", "--id", "acme-2", "--timeout", "1", "--no-browser")
    assert done.returncode == 4
    assert f"  {shell.daemon.public_url}/connect/" in done.stdout
    assert "tokenward connect acme --id acme-2" in done.stderr


def test_connect_refuses_what_cannot_be(shell: Shell) -> None:
    """Mistakes are usage errors that name what to change."""
    assert "there are: acme" in shell.fails(2, "connect", "other")
    assert "NAME=VALUE" in shell.fails(2, "connect", "acme", "--metadata", "x")
    again = ("connect", "acme", "--id", "acme-1", "--scope", "write")
    assert "--scope" in shell.fails(2, *again)


def test_events(shell: Shell) -> None:
    """The past is told oldest first, for people and for programs; an unknown id is 3."""
    told = shell.prints("events", "acme-1").splitlines()
    assert [line.split()[1] for line in told[:2]] == ["connection.created", "connection.authorized"]
    printed = shell.prints("--output", "json", "events", "acme-1", "--limit", "2")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == 2
    assert all(set(line) >= {"id", "at", "connection", "type", "detail"} for line in lines)
    assert "acme-2" in shell.prints("events")
    assert "(unknown_connection)" in shell.fails(3, "events", "nobody")


def test_a_test_that_is_not_configured(shell: Shell) -> None:
    """`test` says what to configure; without a token it ends as `token` does."""
    assert "(test_not_configured)" in shell.fails(1, "test", "acme-1")
    assert "tokenward connect" in shell.fails(4, "test", "acme-2")
    assert "(unknown_connection)" in shell.fails(3, "test", "nobody")


def test_import_export_and_disconnect(shell: Shell, tmp_path: Path) -> None:
    """A file may be imported again and again; what is exported has no secret; the end is 0."""
    lines = [
        {
            "provider": "acme",
            "id": f"moved-{number}",
            "tokens": {
                "refresh_token": f"{REFRESH_TOKEN}-{number}",
                "access_token": ACCESS_TOKEN,
                "expires_at": "2099-01-01T00:00:00Z",
            },
        }
        for number in range(3)
    ]
    file = tmp_path / "moved.jsonl"
    good = [json.dumps(line) for line in lines]
    file.write_text("\n".join([good[0], "{", json.dumps({"provider": "other"}), good[1]]))
    done = shell.run("import", str(file))
    assert done.returncode == 1
    assert "line 2:" in done.stderr
    assert "line 3:" in done.stderr
    file.write_text("\n".join([*good, ""]))
    again = shell.run("import", str(file))
    assert again.returncode == 0, again.stderr
    assert "1 imported, 2 there already" in again.stdout + again.stderr
    assert str(tmp_path / "none") in shell.fails(2, "import", str(tmp_path / "none"))

    exported = shell.prints("export")
    names = [json.loads(line)["id"] for line in exported.splitlines()]
    assert {"acme-1", "acme-2", "moved-0", "moved-1", "moved-2"} <= set(names)
    assert not [secret for secret in (ACCESS_TOKEN, REFRESH_TOKEN) if secret in exported]

    assert "moved-0" in shell.prints("disconnect", "moved-0")
    assert "(disconnected)" in shell.fails(4, "token", "moved-0")
    shell.prints("disconnect", "moved-0")
    for name in ("moved-0", "moved-1", "moved-2"):
        shell.prints("disconnect", name, "--purge")
        assert "(unknown_connection)" in shell.fails(3, "show", name)
    assert "(unknown_connection)" in shell.fails(3, "disconnect", "moved-0")


def test_check_beside_a_daemon(shell: Shell) -> None:
    """`check` looks into the running daemon's database and says that it runs."""
    done = shell.run("check", "--output", "json", environ={"ACME_SECRET": "x"})
    report = json.loads(done.stdout)
    by_subject = {finding["subject"]: finding for finding in report["findings"]}
    assert (done.returncode, report["ok"]) == (0, True), done.stdout
    assert by_subject["schema"]["message"] == "is up to date"
    assert "generated" in by_subject["encryption.keys"]["message"]
    assert shell.daemon.redirect_uri in by_subject["providers.acme"]["message"]
    assert by_subject["listen.api"]["message"].endswith("where a daemon is running")


def test_migrate_and_keys_beside_a_daemon(shell: Shell) -> None:
    """Both find the running daemon's embedded database."""
    environ = {"ACME_SECRET": "x"}
    migrated = shell.run("migrate", environ=environ)
    assert (migrated.returncode, "up to date" in migrated.stdout) == (0, True), migrated.stderr
    status = shell.run("keys", "status", "--output", "json", environ=environ)
    (key,) = json.loads(status.stdout)["keys"]
    assert (key["encrypts"], key["configured"], key["known"]) == (True, True, True)


def test_a_second_daemon_is_refused(shell: Shell) -> None:
    """A state directory serves one daemon; the other ends with 1 and says so in one sentence."""
    message = shell.fails(1, "run", environ={"ACME_SECRET": "x"})
    assert "another tokenward" in message


def test_bad_configuration_is_reported_whole(tmp_path: Path) -> None:
    """`run` and `check` end with 2 and name every finding by its path."""
    (tmp_path / "tokenward.yaml").write_text("colour: red\nrefresh: {at: 7}\n")
    done = tokenward("run", cwd=tmp_path)
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["colour", "refresh.at"]
    checked = tokenward("check", "--output", "json", cwd=tmp_path)
    assert checked.returncode == 2
    assert [f["level"] for f in json.loads(checked.stdout)["findings"]] == ["error", "error"]


def test_a_port_that_is_taken(shell: Shell, tmp_path: Path) -> None:
    """`run` ends with 2 and names the listener; `check` finds the same beforehand."""
    api, public = free_ports(2)
    taken = urlsplit(shell.daemon.api_url).port
    text = (
        f"public_url: http://localhost:{public}\n"
        f"listen: {{api: {{address: 127.0.0.1:{api}}}, public: {{address: 127.0.0.1:{public}}}, "
        f"ops: {{address: 127.0.0.1:{taken}}}}}\n"
        "state_dir: state\n"
    )
    (tmp_path / "tokenward.yaml").write_text(text)
    checked = tokenward("check", cwd=tmp_path)
    assert checked.returncode == 1
    assert re.search(r"^error +listen\.ops ", checked.stdout, re.MULTILINE)
    done = tokenward("run", cwd=tmp_path)
    assert done.returncode == 2
    assert "listen.ops.address: cannot listen" in done.stderr


def test_migrate_then_check_without_a_daemon(tmp_path: Path) -> None:
    """`migrate` makes the embedded database; `check` then starts and stops it for a look."""
    api, public, ops = free_ports(3)
    text = (
        f"public_url: http://localhost:{public}\nstate_dir: state\n"
        f"listen: {{api: {{address: 127.0.0.1:{api}}}, public: {{address: 127.0.0.1:{public}}}, "
        f"ops: {{address: 127.0.0.1:{ops}}}}}\n"
    )
    (tmp_path / "tokenward.yaml").write_text(text)
    before = tokenward("check", cwd=tmp_path)
    assert (before.returncode, (tmp_path / "state").exists()) == (0, False), before.stdout
    migrated = tokenward("migrate", cwd=tmp_path)
    assert migrated.stdout.startswith("applied 0001_")
    after = tokenward("check", cwd=tmp_path)
    assert (after.returncode, "embedded, started for this command" in after.stdout) == (0, True)


def test_wait_gives_up(tmp_path: Path) -> None:
    """Without a daemon `wait` ends with 5 after its time."""
    (ops,) = free_ports(1)
    done = tokenward(
        "wait",
        "--max",
        "0",
        cwd=tmp_path,
        environ={"TOKENWARD_LISTEN__OPS__ADDRESS": f"127.0.0.1:{ops}"},
    )
    assert (done.returncode, "tokenward run" in done.stderr) == (5, True)


def test_generated_keys_can_be_configured(tmp_path: Path) -> None:
    """What `keys generate` prints is a secret, and `keys caller` a configuration, that load."""
    generated = tokenward("keys", "generate", cwd=tmp_path)
    (tmp_path / "secret").write_text(generated.stdout)
    caller = tokenward("keys", "caller", "billing", cwd=tmp_path)
    key, _, snippet = caller.stdout.partition("\n")
    assert key.startswith("tw_")
    assert key not in snippet
    (tmp_path / "tokenward.yaml").write_text(
        "state_dir: state\nencryption: {keys: [{id: a, secret: {file: secret}}]}\n" + snippet
    )
    status = tokenward("keys", "status", "--output", "json", cwd=tmp_path)
    assert [k["id"] for k in json.loads(status.stdout)["keys"]] == ["a"], status.stderr


def test_version(tmp_path: Path) -> None:
    """The version is printed for people and for programs."""
    assert tokenward("version", cwd=tmp_path).stdout == f"tokenward {__version__}\n"
    as_json = tokenward("version", cwd=tmp_path, environ={"TOKENWARD_OUTPUT": "json"})
    assert json.loads(as_json.stdout) == {"version": __version__}
