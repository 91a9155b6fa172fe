"""The pages in a real browser: policies hold, cookies hold, and a person gets to the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support.axe_core import axe_script, judge
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


async def sign_in(browser: Chromium) -> None:
    """Fill in the provider's login page."""
    await browser.until_text("Sign-in")
    await browser.type('input[name="login"]', "alice")
    await browser.type('input[name="password"]', "any")
    await browser.click("button")


def said_of(browser: Chromium, site: str) -> list[str]:
    """Return what the console says of a site's pages."""
    return [complaint for complaint in browser.complaints if complaint.startswith(site)]


def asked_by(browser: Chromium, site: str) -> set[str]:
    """Return the origins that a site's pages ask."""
    return {
        "{0.scheme}://{0.netloc}".format(urlsplit(url))
        for page, url in browser.requests
        if page.startswith(site)
    }


async def test_a_person_clicks_through(
    daemon: Tokenward, browser: Chromium, tmp_path: Path
) -> None:
    """Connect, sign in, consent: the completed page, a good token, and a link that is used up."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            await browser.open(created["connect_url"])
            page = await browser.until_text("asks for access to your account at acme")
            assert "offline_access" in page
            assert await judge(browser, axe_script(), "connect", tmp_path) == []
            await browser.click("button")
            await sign_in(browser)
            await browser.until_text("Authorize")
            await browser.click("button")
            await browser.until_text("Authorization completed")
            assert await judge(browser, axe_script(), "completed", tmp_path) == []
            assert urlsplit(await browser.url()).query == ""
            assert await server.is_active((await daemon.token("acme-1")).body["access_token"])
            assert said_of(browser, daemon.public_url) == []
            assert asked_by(browser, daemon.public_url) == {daemon.public_url}

            await browser.open(created["connect_url"])
            await browser.until_text("This link does not work any more")
            assert await judge(browser, axe_script(), "used", tmp_path) == []


async def test_a_person_declines(daemon: Tokenward, browser: Chromium, tmp_path: Path) -> None:
    """Declined at the provider: a page says so, with its code and the reference in the log."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            await browser.open(created["connect_url"])
            await browser.click("button")
            await browser.until_text("Sign-in")
            await browser.click('a[href$="/abort"]')
            page = await browser.until_text("Access was not granted")
            assert await judge(browser, axe_script(), "denied", tmp_path) == []
            assert "access_denied" in page
            (logged,) = daemon.logged("authorization_failed")
            assert logged["reference"] in page
            assert (await daemon.connection("acme-1"))["status"] == "pending"

            # Nothing was used up: the same link works until somebody goes through with it.
            await browser.open(created["connect_url"])
            await browser.click("button")
            await sign_in(browser)
            await browser.until_text("Authorize")
            await browser.click("button")
            await browser.until_text("Authorization completed")


async def test_an_expired_link(
    daemon: Tokenward, browser: Chromium, tmp_path: Path, database_url: str
) -> None:
    """A connect link that has expired leads to a page that says so."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            database = await asyncpg.connect(database_url)
            await database.execute("UPDATE connect_tickets SET expires_at = now()")
            await database.close()
            await browser.open(created["connect_url"])
            page = await browser.until_text("This link does not work any more")
            assert await judge(browser, axe_script(), "expired", tmp_path) == []
            assert "link_expired" in page


async def test_a_callback_that_comes_twice(
    daemon: Tokenward, browser: Chromium, tmp_path: Path
) -> None:
    """The callback's address opened again is refused with a page, and sends nothing."""
    with OidcProvider(redirect_uris=[daemon.redirect_uri]) as server:
        daemon.settings["providers"] = {"acme": server.provider()}
        async with daemon:
            created = await daemon.create("acme", id="acme-1")
            await browser.open(created["connect_url"])
            await browser.click("button")
            await sign_in(browser)
            await browser.until_text("Authorize")
            await browser.click("button")
            await browser.until_text("Authorization completed")
            callback = next(url for _, url in browser.requests if "/callback?" in url)
            await browser.open(callback)
            page = await browser.until_text("This authorization is over")
            assert await judge(browser, axe_script(), "over", tmp_path) == []
            assert query_values(callback).isdisjoint(page.split())
            assert len(server.events("grant.success")) == 1


def query_values(url: str) -> set[str]:
    """Return the values in a URL's query."""
    return {pair.partition("=")[2] for pair in urlsplit(url).query.split("&")}
