"""Who looks at the operator pages: a sealed cookie, and what a form must bring along.

Nothing is stored. The cookie names a caller and the digest of its key, sealed under a key that is
drawn at each start; every request asks again whether that caller and that key are still in force.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from daemon.domain.clock import Clock, Entropy
from daemon.sidecar.access import Callers, Identity, key_digest

COOKIE = "tokenward_session"
LIFETIME = timedelta(hours=12)
_NONCE = 12
_PURPOSE = b"tokenward operator session 1"
_LONGEST_COOKIE = 2048
# Sessions that were logged out of and would still be good; each is gone when it would have ended.
_MOST_ENDED = 10_000

MOST_FAILURES = 10
"""Wrong keys that may be tried within :data:`FAILURE_WINDOW`, all browsers together."""
FAILURE_WINDOW = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A caller that has logged in. ``csrf`` stands in each of its forms."""

    identity: Identity
    expires_at: datetime
    csrf: str = field(repr=False)
    cookie: str = field(repr=False)


class Sessions:
    """Opens, knows and ends sessions. They end with the process and are not shared by replicas."""

    def __init__(self, callers: Callers, *, clock: Clock, entropy: Entropy) -> None:
        self._callers = callers
        self._clock = clock
        self._entropy = entropy
        self._cipher = AESGCM(entropy(32))
        self._csrf_key = entropy(32)
        self._ended: dict[str, datetime] = {}

    def open(self, key: str) -> Session | None:
        """Return a new session of the caller whose key this is; ``None``: nobody's."""
        digest = key_digest(key)
        identity = self._callers.by_digest(digest)
        if identity is None:
            return None
        expires_at = self._clock.now() + LIFETIME
        nonce = self._entropy(_NONCE)
        content = {"c": identity.name, "k": digest.hex(), "e": int(expires_at.timestamp())}
        sealed = self._cipher.encrypt(nonce, orjson.dumps(content), _PURPOSE)
        return self._session(identity, expires_at, _text_of(nonce + sealed))

    def read(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; ``None`` where it is none, or is over."""
        if not cookie or len(cookie) > _LONGEST_COOKIE or cookie in self._ended:
            return None
        try:
            octets = urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            content = orjson.loads(self._cipher.decrypt(octets[:_NONCE], octets[_NONCE:], _PURPOSE))
        except (ValueError, InvalidTag):
            return None
        if _text_of(octets) != cookie:
            # Another spelling of the same octets would not be among those that have ended.
            return None
        expires_at = datetime.fromtimestamp(content["e"], UTC)
        identity = self._callers.by_digest(bytes.fromhex(content["k"]))
        is_over = expires_at <= self._clock.now()
        if is_over or identity is None or identity.name != content["c"]:
            return None
        return self._session(identity, expires_at, cookie)

    def end(self, session: Session) -> None:
        """Let a session's cookie be worth nothing, wherever copies of it are."""
        now = self._clock.now()
        self._ended = {cookie: end for cookie, end in self._ended.items() if end > now}
        if len(self._ended) < _MOST_ENDED:
            self._ended[session.cookie] = session.expires_at

    def _session(self, identity: Identity, expires_at: datetime, cookie: str) -> Session:
        csrf = hmac.new(self._csrf_key, cookie.encode(), hashlib.sha256).hexdigest()
        return Session(identity=identity, expires_at=expires_at, csrf=csrf, cookie=cookie)


def _text_of(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def is_own_form(session: Session, csrf: str) -> bool:
    """Tell whether a form was made for this session, in constant time."""
    return hmac.compare_digest(session.csrf.encode(), csrf.encode("utf-8", "surrogatepass"))


def set_cookie(session: Session) -> str:
    """Return the ``Set-Cookie`` header of a session.

    Without ``Secure``, for the listener speaks plain http on loopback. Cookies do not tell ports
    apart: other servers on this host name see it, as they see everything of a browser here.
    """
    seconds = int(LIFETIME.total_seconds())
    return f"{COOKIE}={session.cookie}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Strict"


def clear_cookie() -> str:
    """Return the ``Set-Cookie`` header that removes the session."""
    return f"{COOKIE}=; Max-Age=0; Path=/; HttpOnly; SameSite=Strict"


class LoginLimit:
    """Counts wrong keys of the last minute, so that a weak one cannot be tried out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: deque[float] = deque(maxlen=MOST_FAILURES)

    def wait(self) -> float:
        """Return in how many seconds a key may be tried; 0: now."""
        if len(self._failures) < MOST_FAILURES:
            return 0.0
        return max(0.0, self._failures[0] + FAILURE_WINDOW - self._clock.boottime())

    def failed(self) -> None:
        """Note a wrong key."""
        self._failures.append(self._clock.boottime())
