"""What a browser is told and trusted with."""

from __future__ import annotations

import pytest

from daemon.sidecar.browser import PublicOrigin, content_security_policy, host_of

BINDING = "b" * 43


@pytest.mark.parametrize(
    ("public_url", "cookie"),
    [
        (
            "https://tokens.example",
            f"__Host-tokenward={BINDING}; Max-Age=600; Path=/; HttpOnly; SameSite=Lax; Secure",
        ),
        (
            "http://localhost:7421",
            f"tokenward={BINDING}; Max-Age=600; Path=/; HttpOnly; SameSite=Lax",
        ),
    ],
)
def test_the_binding_cookie_is_as_strict_as_the_scheme_allows(public_url: str, cookie: str) -> None:
    """With https no sibling domain can plant it; no script reads it; it outlives no state."""
    origin = PublicOrigin(public_url)

    assert origin.set_cookie(BINDING) == cookie
    assert origin.binding_of({origin.cookie_name: BINDING}) == BINDING


@pytest.mark.parametrize("value", ["", "short", "b" * 44, "ä" * 43])
def test_a_misshapen_binding_counts_as_none(value: str) -> None:
    """A browser with a broken cookie gets a fresh one."""
    assert PublicOrigin("http://localhost:7421").binding_of({"tokenward": value}) is None


@pytest.mark.parametrize(
    ("headers", "is_own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://tokens.example"}, False),
        ({"Origin": "https://tokens.example"}, True),
        ({"Origin": "http://127.0.0.1:7421", "Host": "127.0.0.1:7421"}, True),
        ({"Origin": "https://tokens.example:8443"}, False),
        ({"Origin": "http://tokens.example", "Host": "other"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://evil.example", "Host": "tokens.example"}, False),
    ],
)
def test_a_post_must_come_from_our_own_page(headers: dict[str, str], *, is_own: bool) -> None:
    """A foreign page cannot press Connect; a program without a browser's headers may."""
    assert PublicOrigin("https://tokens.example:443/auth/").is_own_page(headers) is is_own


def test_the_host_of_a_public_url_is_known_in_header_form() -> None:
    """An IPv6 host stands in brackets, as in a ``Host`` header; loopback names always count."""
    assert "[2001:db8::1]" in PublicOrigin("https://[2001:db8::1]:8443").hosts
    assert PublicOrigin("https://Tokens.example").hosts == {
        "tokens.example",
        "localhost",
        "[::1]",
    }


def test_a_page_without_a_form_may_send_none() -> None:
    """Nothing but our stylesheet and pictures is loaded, and nothing is framed or sent."""
    assert content_security_policy() == (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )


@pytest.mark.parametrize(
    ("targets", "action"),
    [
        (("https://t.example", "https://a.example/auth", None), "form-action 'self' https:;"),
        (("https://t.example", None), "form-action 'self' https:;"),
        (("https://t.example", "http://localhost:3000/x"), "form-action 'self' https: http:;"),
        (("https://t.example", "https://a.example; script-src *"), "form-action 'self' https:;"),
    ],
)
def test_a_forms_redirects_are_allowed_without_naming_hosts(
    targets: tuple[str | None, ...], action: str
) -> None:
    """Plain http is allowed only where a known target needs it, and no URL gets into the policy."""
    assert action in content_security_policy(*targets)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (None, None),
        ("https://auth.acme.example/x", "auth.acme.example"),
        ("http://127.0.0.1:4000/auth", "127.0.0.1:4000"),
        ("https://user:pw@auth.acme.example/", "auth.acme.example"),
        ("nonsense", None),
    ],
)
def test_the_host_to_look_for_is_told_without_credentials(
    url: str | None, host: str | None
) -> None:
    """People are told the host that their address bar will show."""
    assert host_of(url) == host
