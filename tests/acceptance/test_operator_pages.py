"""An operator's day at the real daemon: connect, look, test, refresh, reconnect, disconnect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.chromium import Chromium, find_chromium
from tests.support.oidc_provider import OidcProvider
from tests.support.tokenward import Tokenward

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@pytest.fixture
async def browser() -> AsyncIterator[Chromium]:
    """A browser of a person who was never here."""
    assert CHROMIUM is not None
    async with Chromium(CHROMIUM) as chromium:
        yield chromium


def provider_of(server: OidcProvider) -> dict[str, object]:
    """Return a provider that asks for a login each time and tells whose account it is."""
    return server.provider(
        authorization_params={"prompt": "login consent"},
        api_base_url=server.issuer,
        allow_private_hosts=True,
        test={"path": "/me"},
        label="Account {me.sub}",
        account_id="me.sub",
    )


async def log_in(daemon: Tokenward, browser: Chromium) -> None:
    """Log in at the pages: first with a wrong key, then with the right one."""
    await browser.open(f"{daemon.api_url}/")
    await browser.until_text("Caller key")
    await browser.type("#key", "not the key")
    await browser.click("main button[type=submit]")
    await browser.until_text("This key is not known here")
    await browser.type("#key", daemon.key)
    await browser.click("main button[type=submit]")
    await browser.until_text("Logged in as")


async def authorize(browser: Chromium, account: str) -> None:
    """Press Connect on the connect page, sign in at the provider and approve."""
    await browser.until_text("asks for access to your account")
    await browser.click("button")
    await browser.until_text("Sign-in")
    await browser.type('input[name="login"]', account)
    await browser.type('input[name="password"]', "any")
    await browser.click("button")
    await browser.until_text("Authorize")
    await browser.click("button")


async def reconnect(daemon: Tokenward, browser: Chromium, account: str) -> None:
    """Press Reconnect on the connection's page and go through with it."""
    await browser.open(f"{daemon.api_url}/connections/acme-1")
    await browser.click("#do-reconnect")
    await authorize(browser, account)


async def test_an_operators_day(daemon: Tokenward, browser: Chromium, tmp_path: Path) -> None:
    """S10, S11, S12, S14, S18, S20, all by pressing buttons; no page holds a token."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": provider_of(server)}
        async with daemon:
            await log_in(daemon, browser)
            await browser.until_text("There is no connection yet")
            await browser.click("main a.button, main a")
            await browser.until_text("Connect an account")
            await browser.type("#id", "acme-1")
            await browser.evaluate("document.querySelector('#provider').value = 'acme'")
            await browser.click("main button[type=submit]")
            await authorize(browser, "alice")
            await browser.until_text("Authorization completed")

            await browser.open(f"{daemon.api_url}/connections?q=alice&status=active")
            page = await browser.until_text("Account alice")
            assert "Active, not used yet" in page
            await browser.screenshot(tmp_path / "list.png")
            await browser.click("tbody a")
            await browser.until_text("History")
            await browser.click("#do-test")
            await browser.until_text("The test passed")
            before = (await daemon.token("acme-1")).body
            await browser.click("#do-refresh")
            page = await browser.until_text("The token was refreshed.")
            assert "Token refreshed" in page
            await browser.screenshot(tmp_path / "detail.png")
            after = (await daemon.token("acme-1")).body
            assert after["generation"] > before["generation"]
            source = str(await browser.evaluate("document.documentElement.outerHTML"))
            for secret in (before["access_token"], after["access_token"], daemon.key):
                assert secret not in source

            await reconnect(daemon, browser, "bob")
            page = await browser.until_text("That is another account")
            assert "alice" in page
            await browser.screenshot(tmp_path / "somebody-else.png")
            assert (await daemon.connection("acme-1"))["account_id"] == "alice"
            await reconnect(daemon, browser, "alice")
            await browser.until_text("Authorization completed")

            await browser.open(f"{daemon.api_url}/connections/acme-1/disconnect")
            await browser.click("main button.danger")
            page = await browser.until_text("Disconnected.")
            assert "Authorization failed" in page
            await browser.screenshot(tmp_path / "disconnected.png")
            assert (await daemon.token("acme-1")).body["code"] == "disconnected"
            assert said_of(browser, daemon) == []


def said_of(browser: Chromium, daemon: Tokenward) -> list[str]:
    """Return what the console says of our pages, but for answers that were to be refusals."""
    ours = (daemon.api_url, daemon.public_url)
    return [one for one in browser.complaints if one.startswith(ours) and "status of 4" not in one]
