"""Makes `.venv` and installs into it what the lock files say, then this tree in place.

Needs Python 3.11 and its standard library, nothing else: not pip, not ensurepip (Debian packs both
apart), no CA certificates. What is fetched counts only with the SHA-256 that stands here or in
the lock file. A second call with nothing to do costs some hundredths of a second.

    python3 .ci/bootstrap.py run     what `tokenward demo` needs
    python3 .ci/bootstrap.py dev     that, and what the tests and checks need
    python3 .ci/bootstrap.py fuzz    that, and a fuzzer
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import ssl
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.parse
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OLDEST = (3, 11)
# The lock files, each holding all of the one before it at the same versions.
PROFILES = ("run", "dev", "fuzz")

PIP = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
INDEX = "https://pypi.org/simple"
_SECONDS = 60
_LARGEST_DOWNLOAD = 32 * 1024 * 1024


def main(arguments: list[str]) -> None:
    """Bring `.venv` up to date for the one profile in ``arguments``."""
    if len(arguments) != 1 or arguments[0] not in PROFILES:
        sys.exit(f"usage: python3 .ci/bootstrap.py {'|'.join(PROFILES)}")
    if sys.version_info[:2] < OLDEST:
        sys.exit(
            "tokenward needs Python {}.{} or newer; {} is {}.{}. Name a newer one: "
            "make PYTHON=python3.12 …".format(*OLDEST, sys.executable, *sys.version_info[:2])
        )
    try:
        # Two terminals may say `make` at once; the second waits, and finds everything done.
        folder = os.open(ROOT, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        bring_up_to_date(arguments[0])
    except OSError as error:
        sys.exit(f"{VENV} cannot be made: {error}")


def bring_up_to_date(profile: str) -> None:
    """Do what is missing for ``profile``, and nothing else."""
    make_environment()
    fulfilled = PROFILES[: PROFILES.index(profile) + 1]
    if stamp(profile).exists() and stamp(profile).read_text() == fingerprint(profile):
        return
    provide_pip()
    for name in PROFILES:
        stamp(name).unlink(missing_ok=True)
    lock = lock_file(profile)
    count = len(re.findall(r"^\S+==", lock.read_text(), re.MULTILINE))
    say(f"Installing {count} packages into {VENV} (once; some 30 to 60 seconds) …")
    pip("install", "--require-hashes", "--only-binary=:all:", "--requirement", str(lock))
    pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    for name in fulfilled:
        stamp(name).write_text(fingerprint(name))


def make_environment() -> None:
    """Make `.venv`, or make it anew where it cannot serve here and now."""
    made_for = VENV / ".made-for"
    purpose = "{} {}.{}\n".format(ROOT, *sys.version_info[:2])
    if PYTHON.exists() and (made_for.read_text() if made_for.exists() else purpose) == purpose:
        return
    if VENV.exists():
        say(f"Making {VENV} anew: it was made for another place or another Python.")
    venv.create(VENV, clear=True, symlinks=True)
    made_for.write_text(purpose)


def provide_pip() -> None:
    """Have pip in `.venv`: the interpreter's own where it brings one, else the wheel."""
    if quietly("pip", "--version") or quietly("ensurepip"):
        return
    say("This Python comes without ensurepip (Debian: python3-venv): fetching pip itself …")
    content = fetch_pip()
    if hashlib.sha256(content).hexdigest() != PIP_SHA256:
        sys.exit(f"What came as {PIP} is not that file: its SHA-256 is another. Try again later.")
    # A wheel of pure Python is installed by unpacking it (PEP 427); only its script is missing.
    variables = {"base": str(VENV), "platbase": str(VENV)}
    target = sysconfig.get_path("purelib", "venv", vars=variables)
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        wheel.extractall(target)


def fetch_pip() -> bytes:
    """Return the pip wheel from the package index (PEP 503), not yet verified."""
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/") + "/pip/"
    try:
        page = fetch(index).decode()
        link = re.search(rf'href="([^"#]*/{re.escape(PIP)})[#"]', page)
        if link is not None:
            return fetch(urllib.parse.urljoin(index, link[1]))
        reason: object = f"it does not list {PIP}"
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
    sys.exit(
        f"pip cannot be fetched from {index}: {reason}. Check the network (HTTPS_PROXY for a "
        "proxy, PIP_INDEX_URL for a mirror), or install it: apt install python3-venv"
    )


def fetch(url: str) -> bytes:
    """Return what is at ``url``, whose truth somebody else must prove."""
    try:
        return download(url, ssl.create_default_context())
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLCertVerificationError):
            raise
    # A fresh Debian has no CA certificates, so nobody's name can be checked. The hash can.
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    return download(url, unverified)


def download(url: str, context: ssl.SSLContext) -> bytes:
    """Return what is at ``url``; raises OSError."""
    with urllib.request.urlopen(url, timeout=_SECONDS, context=context) as response:
        content: bytes = response.read(_LARGEST_DOWNLOAD)
    return content


def quietly(module: str, *arguments: str) -> bool:
    """Run a module in `.venv` and tell whether it succeeded."""
    command = [str(PYTHON), "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pip(*arguments: str) -> None:
    """Run pip in `.venv`; it prints nothing but what went wrong."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run([str(PYTHON), "-m", "pip", *options, *arguments], check=False)
    if done.returncode != 0:
        sys.exit(
            "The packages could not be installed; pip has said why above. Check the network "
            "(HTTPS_PROXY for a proxy, PIP_INDEX_URL for a mirror, PIP_CERT for an own certificate "
            "authority), then try again."
        )


def lock_file(profile: str) -> Path:
    """Return the lock file of a profile."""
    return ROOT / "requirements" / f"{profile}.lock"


def stamp(profile: str) -> Path:
    """Return the file that says for which requirements a profile is installed."""
    return VENV / f".installed-{profile}"


def fingerprint(profile: str) -> str:
    """Return what the stamp of a finished installation holds."""
    digest = hashlib.sha256()
    for path in (lock_file(profile), ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def say(text: str) -> None:
    """Print a line at once, before what it announces."""
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
