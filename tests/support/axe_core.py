"""axe-core on a page of the browser: what it finds against WCAG 2.2 A and AA and good practice."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest

from daemon.demo.authorization_server.installation import _npm_environment
from daemon.demo.authorization_server.node import AuthorizationServerError, find_node
from tests.support.chromium import Chromium

_SOURCES = Path(__file__).parent / "axe"
_CACHE = Path(__file__).parents[2] / ".cache" / "axe-core"
_SCRIPT = Path("node_modules", "axe-core", "axe.min.js")
_LOCK = "package-lock.json"
_SIZES = {"wide": 1280, "narrow": 380}


def axe_script() -> str:
    """Return axe-core's source, installed once with npm; skip the test where that cannot be."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (_SOURCES / _LOCK).read_bytes()
        installed = _CACHE / "packages"
        if not ((installed / _SCRIPT).is_file() and (installed / _LOCK).read_bytes() == wanted):
            _install(installed)
    return (installed / _SCRIPT).read_text(encoding="utf-8")


async def violations(browser: Chromium, script: str) -> list[str]:
    """Return what is wrong with the page as it is now: rule, help and element, a line each."""
    await browser.command("Runtime.evaluate", expression=script)
    result = await browser.command(
        "Runtime.evaluate",
        expression="axe.run().then(r => JSON.stringify(r.violations.map("
        "v => [v.id, v.help, v.nodes.map(n => n.target.join(' ') + ' ' + n.failureSummary)])))",
        awaitPromise=True,
        returnByValue=True,
    )
    value = result.get("result", {}).get("value")
    assert isinstance(value, str), result
    return [f"{rule}: {words}: {'; '.join(nodes)}" for rule, words, nodes in orjson.loads(value)]


async def judge(browser: Chromium, script: str, name: str, folder: Path) -> list[str]:
    """Return what axe-core finds and what sticks out, in both schemes and at both sizes.

    Leaves a picture of each in ``folder``.
    """
    found: list[str] = []
    for scheme in ("light", "dark"):
        await browser.prefer(scheme)
        for size, width in _SIZES.items():
            await browser.resize(width, 900)
            await browser.screenshot(folder / f"{name}-{scheme}-{size}.png")
            found += [
                f"{name}, {scheme}, {size}: {one}" for one in await violations(browser, script)
            ]
            if await browser.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append(f"{name}, {scheme}, {size}: wider than the window")
    return found


def _install(target: Path) -> None:
    staging = target.with_name("installing")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(_SOURCES, staging)
    try:
        node = find_node()
    except AuthorizationServerError as error:
        pytest.skip(str(error))
    done = subprocess.run(  # noqa: S603 - npm, as found by find_node
        [*node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"],
        cwd=staging,
        env=_npm_environment(node),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("npm error")][:3]
        pytest.skip(f"npm cannot fetch axe-core: {' '.join(said)}")
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
