"""What a person's browser is told and trusted with: headers, the binding cookie, whose page posts.

Pure. The one hard idea: a transaction belongs to the browser that started it (RFC 9700 4.7), and
a cookie that only this listener can set is how that browser is known again.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from daemon.domain.clock import Entropy
from daemon.oauth.authorization import STATE_LIFETIME, is_secret, new_secret

SECURITY_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "Server": "tokenward",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
"""Sent with every answer that does not say otherwise."""

# Under ``no-referrer`` a browser posts a form with ``Origin: null``, which proves nothing.
FORM_REFERRER_POLICY = "same-origin"


class PublicOrigin:
    """The address under which browsers know the public listener: ``public_url``, taken apart."""

    def __init__(self, public_url: str) -> None:
        parts = urlsplit(public_url.rstrip("/"))
        self.is_https = parts.scheme == "https"
        self.path = parts.path
        self.origin = _origin(parts)
        name = (parts.hostname or "").lower()
        self.hosts = frozenset({f"[{name}]" if ":" in name else name, "localhost", "[::1]"})

    @property
    def cookie_name(self) -> str:
        """Return the binding cookie's name; with ``__Host-`` no sibling domain can plant one."""
        return "__Host-tokenward" if self.is_https else "tokenward"

    def binding_of(self, cookies: Mapping[str, str]) -> str | None:
        """Return the binding among a request's cookies, if a well-formed one is there."""
        binding = cookies.get(self.cookie_name, "")
        return binding if is_secret(binding) else None

    def set_cookie(self, binding: str) -> str:
        """Return the ``Set-Cookie`` header that keeps ``binding`` as long as a state lives.

        ``Lax``, because the way back from the provider is a cross-site navigation. Over plain
        http (loopback only) cookies do not tell ports apart: other servers on that host see it.
        """
        seconds = int(STATE_LIFETIME.total_seconds())
        secure = "; Secure" if self.is_https else ""
        return (
            f"{self.cookie_name}={binding}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax"
            + secure
        )

    def is_own_page(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a POST comes from a page of this listener, as far as its headers say.

        Browsers send ``Sec-Fetch-Site`` to secure origins and to loopback, and no page can forge
        it; older ones send ``Origin``. A program that sends neither is no browser being misused.
        """
        site = headers.get("Sec-Fetch-Site")
        if site is not None:
            return site in {"same-origin", "none"}
        origin = headers.get("Origin")
        host = headers.get("Host", "")
        return origin is None or origin in {self.origin, f"http://{host}", f"https://{host}"}


def new_binding(entropy: Entropy) -> str:
    """Return a fresh binding, as unguessable as a state."""
    return new_secret(entropy)


def content_security_policy(*form_targets: str | None) -> str:
    """Return the policy of a page: our stylesheet and pictures, no script, no frame, no stranger.

    ``form_targets`` are URLs to which sending the page's form may lead. Chromium holds *every*
    redirect after a form's submission against ``form-action``: the provider, the login server
    that the provider hands over to, the callback, the return URL. Which hosts those are is not
    ours to know, so a page with a form allows https, and http only where one of the targets needs
    it. The page holds no secret that a smuggled form could carry away.
    """
    if not form_targets:
        action = "'none'"
    else:
        plain = any(target is not None and target.startswith("http:") for target in form_targets)
        action = "'self' https:" + (" http:" if plain else "")
    return (
        "default-src 'none'; style-src 'self'; img-src 'self' data:; "
        f"form-action {action}; frame-ancestors 'none'; base-uri 'none'"
    )


def host_of(url: str | None) -> str | None:
    """Return the host that a person should look for in the address bar, with a port if unusual."""
    return urlsplit(url).netloc.rpartition("@")[2] or None if url else None


def _origin(parts: SplitResult) -> str:
    default_port = {"https": 443, "http": 80}.get(parts.scheme)
    netloc = parts.netloc.lower()
    return f"{parts.scheme}://" + netloc.removesuffix(f":{default_port}")
