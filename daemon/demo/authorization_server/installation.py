"""Installing oidc-provider with npm, once per lock file, however many processes ask at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemon.demo.authorization_server.node import AuthorizationServerError, Node

SOURCES = Path(__file__).parent
_MANIFEST = ("package.json", "package-lock.json", ".npmrc")
_TIMEOUT = 300.0
# Node trusts its built-in list only; what the machine's owner has added stands in one of these.
_SYSTEM_CERTIFICATES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


def node_modules(directory: Path) -> Path:
    """Return where the packages of this version's lock file are, once they are installed."""
    digest = hashlib.sha256()
    for name in _MANIFEST:
        digest.update((SOURCES / name).read_bytes())
    return directory / f"packages-{digest.hexdigest()[:16]}" / "node_modules"


def is_installed(directory: Path) -> bool:
    """Tell whether :func:`install` has nothing to do (and so needs no network)."""
    return node_modules(directory).is_dir()


def install(directory: Path, node: Node) -> Path:
    """Install the packages under ``directory`` where they are missing; return ``node_modules``.

    Blocks for seconds, and while another process installs to the same place. The packages
    appear by one rename after npm has succeeded: a broken installation never counts.

    Raises:
        AuthorizationServerError: npm failed; nothing was left behind.
    """
    wanted = node_modules(directory)
    if wanted.is_dir():
        return wanted
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(directory):
            if not wanted.is_dir():
                _install_packages(wanted.parent, node)
    except OSError as error:
        raise AuthorizationServerError(
            f"The authorization server cannot be installed in {directory}: {error.strerror}."
            " Make the directory writable, or choose another."
        ) from error
    return wanted


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Closing the file releases the lock, as does the end of the process, however it comes.
        yield


def _install_packages(target: Path, node: Node) -> None:
    staging = target.with_name("installing")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for name in _MANIFEST:
        shutil.copyfile(SOURCES / name, staging / name)
    try:
        _run_npm(staging, node)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run_npm(directory: Path, node: Node) -> None:
    command = [*node.npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
    command += ["--no-update-notifier", "--no-progress", "--fetch-retry-mintimeout=1000"]
    try:
        done = subprocess.run(  # noqa: S603 - npm, as found by find_node
            command,
            cwd=directory,
            env=_npm_environment(node),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AuthorizationServerError(_advice(f"took more than {_TIMEOUT:.0f} s")) from error
    if done.returncode != 0:
        raise AuthorizationServerError(_advice("failed", done.stderr))


def _npm_environment(node: Node) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join((str(node.executable.parent), os.environ.get("PATH", "")))
    certificates = _certificates()
    if certificates is not None:
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(certificates))
    return environment


def _certificates() -> Path | None:
    configured = os.environ.get(ssl.get_default_verify_paths().openssl_cafile_env)
    if configured:
        return Path(configured)
    return next((path for path in _SYSTEM_CERTIFICATES if path.is_file()), None)


def _advice(what: str, stderr: str = "") -> str:
    # The first lines of npm's complaint name the cause; the rest is a dump of it.
    said = [line for line in stderr.splitlines() if line.startswith("npm error")][:4]
    advice = (
        f"npm {what} while installing the authorization server's packages. They are fetched"
        " once from npm's registry: check the network; set HTTPS_PROXY for a proxy,"
        " npm_config_registry for a mirror, NODE_EXTRA_CA_CERTS for an own certificate"
        " authority; then try again."
    )
    return "\n".join([advice, *(f"  {line}" for line in said)])
