"""The operator pages in a real browser: policies and cookies hold, and everybody can use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.axe_core import axe_script, judge
from tests.support.chromium import Chromium, find_chromium
from tests.support.operator_stage import KEYS, OperatorStage, operator_stage

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
# Path, and words that tell that the page is there.
PAGES = {
    "list": ("/connections", "Ada Lovelace"),
    "nothing": ("/connections?q=nobody", "No connection matches"),
    "good": ("/connections/acme-1?said=test_passed", "The test passed"),
    "failing": ("/connections/acme-3", "tried again"),
    "dead": ("/connections/acme-4?said=not_refreshed", "could not be refreshed"),
    "pending": ("/connections/acme-5", "Nobody has authorized"),
    "disconnected": ("/connections/acme-6", "are erased"),
    "disconnect": ("/connections/acme-1/disconnect", "Keep it"),
    "remove": ("/connections/acme-6/disconnect", "erased already"),
    "providers": ("/providers", "Redirect URI to register"),
    "connect": ("/connect", "Connect an account"),
    "missing": ("/connections/none", "There is no such connection"),
}


@pytest.fixture
async def browser() -> AsyncIterator[Chromium]:
    """A browser of a person who was never here."""
    assert CHROMIUM is not None
    async with Chromium(CHROMIUM) as chromium:
        yield chromium


@pytest.fixture
async def stage() -> AsyncIterator[OperatorStage]:
    """The pages, running."""
    async with operator_stage() as running:
        yield running


async def log_in(browser: Chromium, url: str, key: str = KEYS["admin"]) -> None:
    """Log in as a person does."""
    await browser.open(f"{url}/")
    await browser.until_text("Caller key")
    await browser.type("#key", key)
    await browser.click("main button[type=submit]")
    await browser.until_text("Logged in as")


async def test_every_page_is_for_everybody(
    stage: OperatorStage, browser: Chromium, tmp_path: Path
) -> None:
    """axe-core finds nothing, nothing sticks out, and nothing is blocked or asked elsewhere."""
    script = axe_script()
    await browser.open(f"{stage.url}/login")
    await browser.until_text("Caller key")
    found = await judge(browser, script, "login", tmp_path)
    await browser.type("#key", "wrong")
    await browser.click("main button[type=submit]")
    await browser.until_text("not known")
    found += await judge(browser, script, "wrong-key", tmp_path)
    await log_in(browser, stage.url)
    for name, (path, words) in PAGES.items():
        await browser.open(stage.url + path)
        await browser.until_text(words)
        found += await judge(browser, script, name, tmp_path)
    await browser.open(f"{stage.url}/connections/acme-1")
    await browser.click("button[value=link]")
    await browser.until_text("A link to send")
    found += await judge(browser, script, "link", tmp_path)
    assert found == []
    strangers = {url for _, url in browser.requests if not url.startswith(f"{stage.url}/")}
    assert strangers == set()
    expected = "Failed to load resource: the server responded with a status of 40"
    assert [one for one in browser.complaints if expected not in one] == []


async def test_everything_works_without_javascript(stage: OperatorStage, browser: Chromium) -> None:
    """Log in, search, test, disconnect: forms and links are all there is to it."""
    await browser.command("Emulation.setScriptExecutionDisabled", value=True)
    await log_in(browser, stage.url)
    await browser.type("#q", "ada")
    await browser.click(".search button")
    found = await browser.until_text("Show all")
    assert "Grace Hopper" not in found
    await browser.click("tbody a")
    page = await browser.until_text("History")
    assert "curl -s" in await browser.evaluate("document.querySelector('#curl').value")
    assert "Copy" not in page
    await browser.click("#do-test")
    await browser.until_text("The test passed")
    await browser.click("button.danger")
    await browser.until_text("Keep it")
    await browser.click("button.danger")
    await browser.until_text("has revoked the tokens")
    await browser.click("header form button")
    await browser.until_text("You are logged out")
    assert stage.behind.done == [("test", "acme-1"), ("disconnect", "acme-1")]


async def test_the_keyboard_is_enough(stage: OperatorStage, browser: Chromium) -> None:
    """The key's field has the focus; the first stop of a page leads past its head."""
    await browser.open(f"{stage.url}/login")
    await browser.until_text("Caller key")
    await browser.command("Input.insertText", text=KEYS["admin"])
    await press(browser, "Enter", "\r")
    await browser.until_text("Logged in as")
    await press(browser, "Tab")
    assert await browser.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert await browser.evaluate("document.activeElement.getBoundingClientRect().top >= 0")
    await press(browser, "Enter", "\r")
    assert (await browser.url()).endswith("#main")
    await press(browser, "Tab")
    assert await browser.evaluate("document.activeElement.textContent") == "Connect an account"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await browser.evaluate(outline) == "solid"


async def test_the_script_only_saves_marking_text(stage: OperatorStage, browser: Chromium) -> None:
    """With it there is a Copy button; what it copies holds no key."""
    await browser.command(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    await log_in(browser, stage.url)
    await browser.open(f"{stage.url}/connections/acme-1")
    await browser.until_text("Copy")
    await browser.click("button[data-copy]")
    await browser.until_text("Copied")
    copied = await browser.command(
        "Runtime.evaluate",
        expression="navigator.clipboard.readText()",
        awaitPromise=True,
        returnByValue=True,
    )
    assert "api.key" in copied["result"]["value"]
    assert "canary" not in copied["result"]["value"]


async def test_a_page_of_another_site_gets_nowhere(stage: OperatorStage, browser: Chromium) -> None:
    """Neither a link nor a form from elsewhere arrives with the session."""
    await log_in(browser, stage.url)
    other = stage.url.replace("127.0.0.1", "localhost")
    await browser.open(f"{other}/login")
    await browser.until_text("Caller key")
    await browser.evaluate(
        f"(() => {{ const a = document.createElement('a'); a.href = '{stage.url}/connections';"
        " document.body.append(a); a.click(); })()"
    )
    page = await browser.until_text("Open this page yourself")
    assert "Ada" not in page


async def press(browser: Chromium, key: str, text: str = "") -> None:
    """Press a key."""
    code = {"Enter": 13, "Tab": 9}[key]
    for kind in ("keyDown", "keyUp"):
        await browser.command(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            windowsVirtualKeyCode=code,
            text=text if kind == "keyDown" else "",
        )
