"""Who may ask, for which connections, and for what (contract 2 and 4).

Being on this machine proves nothing: in a pod every container reaches 127.0.0.1. A caller is
known by its key, by the service account token of its pod, or by the uid that the kernel states
for the other end of a Unix socket.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import translate
from pathlib import Path
from typing import Protocol

from daemon.config.settings import Caller, Permission, ServiceAccount
from daemon.domain.clock import Entropy
from daemon.domain.connection import is_connection_id
from daemon.domain.errors import ConfigurationError, Finding, Problem

API_KEY_FILE = "api.key"
_KEY_BYTES = 32
# A key that somebody else put into the file: anything that can stand in a header and is long
# enough not to be guessed.
_KEY = re.compile(r"[\x21-\x7e]{32,512}", re.ASCII)
# Authorization headers kept that were right once: one for each caller, unless some vary spelling.
_REMEMBERED_HEADERS = 1024
# Answers of `may_see` kept per caller: about 0.5 MB at the longest ids, and a caller that reads
# more connections than this pays one regular expression match, some hundred nanoseconds, a read.
_REMEMBERED = 4096

_ALL_PERMISSIONS = frozenset(Permission)


class Identity:
    """One known caller and its rights, as configured when it asked.

    Lives as long as its configuration: ``Callers.replace`` makes new ones. A long answer, such as
    a proxied stream, keeps the rights it began with; event streams are ended by a reload.
    """

    __slots__ = ("_matches", "_remembered", "_sees_all", "name", "patterns", "permissions")

    def __init__(
        self, name: str, *, connections: Iterable[str], permissions: frozenset[Permission]
    ) -> None:
        patterns = tuple(connections)
        self.name = name
        self.permissions = permissions
        self._sees_all = "*" in patterns
        self.patterns = None if self._sees_all else patterns
        self._matches = re.compile("|".join(map(translate, patterns)) or r"(?!)").match
        self._remembered: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"

    def may_see(self, connection_id: str) -> bool:
        """Tell whether a pattern of this caller matches; case counts, ``/`` has no meaning."""
        if self._sees_all:
            return True
        known = self._remembered.get(connection_id)
        if known is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            known = self._matches(connection_id) is not None
            self._remembered[connection_id] = known
        return known

    def require(self, permission: Permission, connection_id: str | None = None) -> None:
        """Return where this caller has ``permission`` (for that connection, if one is named).

        The permission is judged first and without a look at the connection, so a refusal tells
        nothing about what exists.

        Raises:
            Problem: 403 ``permission_denied``, or 404 ``unknown_connection`` for a connection
                that is not this caller's.
        """
        if permission not in self.permissions:
            raise Problem(
                403,
                "permission_denied",
                f"This caller lacks the permission '{permission}'. "
                "Add it to the caller's permissions in the configuration.",
            )
        if connection_id is not None and not self.may_see(connection_id):
            raise unknown_connection(connection_id)


def named_ids(callers: Iterable[Caller]) -> list[str]:
    """Return the connections that callers' patterns name whole, each once, in order."""
    patterns = (pattern for caller in callers for pattern in caller.connections)
    return list(dict.fromkeys(each for each in patterns if is_connection_id(each)))


class AccountTokens(Protocol):
    """Service account tokens: ``daemon.sidecar.service_accounts.ServiceAccounts``."""

    def lately(self, authorization: str) -> ServiceAccount | None:
        """Return whose token is in this header, where the very same was known lately."""

    def remembered(self, digest: bytes, authorization: str | None = None) -> ServiceAccount | None:
        """Return whose token has this SHA-256, where it was verified lately, in any header."""

    async def verify(
        self, token: str, digest: bytes, is_caller: Callable[[ServiceAccount], bool]
    ) -> ServiceAccount | None:
        """Return whose token this is; ``None``: it is none. Raises Problem: it is a bad one."""


class Callers:
    """The callers of the current configuration; ``replace`` swaps them while running."""

    __slots__ = ("_by_account", "_by_digest", "_by_header", "_by_uid", "_tokens")

    def __init__(
        self,
        callers: Iterable[Caller],
        *,
        allowed_uids: Iterable[int] = (),
        tokens: AccountTokens | None = None,
    ) -> None:
        self._by_account: dict[ServiceAccount, Identity] = {}
        self._by_digest: dict[bytes, Identity] = {}
        self._by_header: dict[str, Identity] = {}
        self._by_uid: dict[int, Identity] = {}
        self._tokens = tokens
        self.replace(callers, allowed_uids=allowed_uids)

    def replace(self, callers: Iterable[Caller], *, allowed_uids: Iterable[int] = ()) -> None:
        """Know these callers, and only these, from the next request on."""
        by_digest: dict[bytes, Identity] = {}
        by_account: dict[ServiceAccount, Identity] = {}
        for caller in callers:
            identity = Identity(
                caller.name, connections=caller.connections, permissions=caller.permissions
            )
            if caller.service_account is None:
                by_digest[caller.key_sha256] = identity
            else:
                by_account[caller.service_account] = identity
        by_uid = {
            uid: Identity(f"uid:{uid}", connections=("*",), permissions=_ALL_PERMISSIONS)
            for uid in allowed_uids
        }
        self._by_digest, self._by_account, self._by_uid = by_digest, by_account, by_uid
        self._by_header = {}

    def may_see(self, name: str, connection_id: str) -> bool:
        """Tell whether a caller of this name may see a connection; one that is gone may not."""
        by_credential = (self._by_digest, self._by_account, self._by_uid)
        known = (identity for each in by_credential for identity in each.values())
        return any(each.name == name and each.may_see(connection_id) for each in known)

    def by_digest(self, digest: bytes) -> Identity | None:
        """Return the caller whose key has this SHA-256: is a session of it still good?"""
        return self._by_digest.get(digest)

    async def by_secret(self, secret: str) -> Identity | None:
        """Return the caller whose key or service account token this is; verifies a new token.

        The look-up is no timing oracle although it is a dictionary's: what is compared is the
        SHA-256 of the guess, which the guesser cannot steer towards a stored digest without
        inverting SHA-256, and the dictionary compares bytes only after a secretly seeded 64-bit
        hash of them was equal. How long it takes also does not depend on how many callers exist.

        Raises:
            Problem: as :meth:`recognise`, for a token that is refused or cannot be verified.
        """
        digest = key_digest(secret)
        identity = self._by_digest.get(digest) or self._by_remembered(digest)
        if identity is None and self._tokens is not None:
            account = await self._tokens.verify(secret, digest, self._has_account)
            identity = None if account is None else self._by_account.get(account)
        return identity

    def authenticate(self, authorization: str | None, peer_uid: int | None) -> Identity:
        """Return who asks, from the ``Authorization`` header and the Unix socket's peer.

        A presented key decides alone: a wrong one is refused even where the uid is allowed. A
        service account token that was not verified within a minute is unknown here, too:
        :meth:`recognise` verifies it.

        Raises:
            Problem: 401 ``unauthenticated``.
        """
        if authorization is None:
            return self._by_peer(peer_uid)
        identity = self._by_known_header(authorization)
        if identity is None:
            raise _unknown_key()
        return identity

    async def recognise(self, authorization: str | None, peer_uid: int | None) -> Identity:
        """Return who asks as :meth:`authenticate` does, having verified a token that is new.

        Raises:
            Problem: 401 ``unauthenticated``, of a token with the kind of ``reason``; 503
                ``verification_unavailable``.
        """
        if authorization is None:
            return self._by_peer(peer_uid)
        identity = self._by_known_header(authorization)
        if identity is None:
            secret = _bearer(authorization)
            identity = None if secret is None else await self.by_secret(secret)
        if identity is None:
            raise _unknown_key()
        return identity

    def _by_known_header(self, authorization: str) -> Identity | None:
        # Hashing the key is the dearest step of a token read. A right header is looked up as it
        # is, which tells a guesser as little as `by_secret` does: string hashes are seeded as well.
        identity = self._by_header.get(authorization)
        if identity is None and self._tokens is not None:
            account = self._tokens.lately(authorization)
            identity = None if account is None else self._by_account.get(account)
        if identity is not None:
            return identity
        secret = _bearer(authorization)
        if secret is None:
            return None
        digest = key_digest(secret)
        identity = self._by_digest.get(digest)
        if identity is None:
            return self._by_remembered(digest, authorization)
        if len(self._by_header) < _REMEMBERED_HEADERS:
            self._by_header[authorization] = identity
        return identity

    def _by_remembered(self, digest: bytes, authorization: str | None = None) -> Identity | None:
        if self._tokens is None:
            return None
        account = self._tokens.remembered(digest, authorization)
        return None if account is None else self._by_account.get(account)

    def _has_account(self, account: ServiceAccount) -> bool:
        return account in self._by_account

    def _by_peer(self, uid: int | None) -> Identity:
        if uid is None:
            raise _unauthenticated("No caller key was sent.")
        identity = self._by_uid.get(uid)
        if identity is None:
            raise _unauthenticated(
                f"The uid {uid} is not one of listen.api.allowed_uids and sent no caller key."
            )
        return identity


def key_digest(key: str) -> bytes:
    """Return the SHA-256 under which a caller's key is known."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def unknown_connection(connection_id: str, *, merged_into: str | None = None) -> Problem:
    """Return the answer for a connection that does not exist or is not the caller's: the same.

    ``merged_into`` is where it went, for a caller who may see that one.
    """
    if merged_into is not None:
        return Problem(
            404,
            "unknown_connection",
            f"This connection's account is connected as {merged_into}, and it gave way to that "
            "one. Use that id from now on.",
            connection=connection_id,
            merged_into=merged_into,
        )
    return Problem(
        404,
        "unknown_connection",
        "There is no such connection for this caller. Check the id, and the caller's connection "
        "patterns in the configuration.",
        connection=connection_id if is_connection_id(connection_id) else None,
    )


def ensure_api_key(state_dir: Path, entropy: Entropy) -> tuple[Caller, Path]:
    """Return the caller of ``{state_dir}/api.key`` and that path; make the file where absent.

    For a daemon with no callers configured. Of several processes that start at once one key wins
    and all return it; the file appears whole, with mode 0600, or not at all.

    Raises:
        ConfigurationError: the file cannot be made or read, or holds no key.
    """
    path = state_dir / API_KEY_FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, _new_key(entropy), unique=entropy(8).hex())
        key = read_api_key(state_dir)
    except OSError as error:
        message = f"cannot keep the API key in {path}: {error.strerror}"
        raise ConfigurationError([Finding("state_dir", message)]) from error
    caller = Caller(
        name="tokenward",
        key_sha256=hashlib.sha256(key.encode()).digest(),
        connections=("*",),
        permissions=_ALL_PERMISSIONS,
    )
    return caller, path


def read_api_key(state_dir: Path) -> str:
    """Return the key in ``{state_dir}/api.key``.

    A mode that lets others read is narrowed, where the file is ours: volumes of a pod are handed
    over with group rights.

    Raises:
        OSError: the file is absent or not readable.
        ConfigurationError: it holds no key.
    """
    path = state_dir / API_KEY_FILE
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, encoding="ascii", errors="replace") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            with suppress(PermissionError):
                os.fchmod(descriptor, 0o600)
        key = file.read(1024).strip()
    if _KEY.fullmatch(key) is None:
        message = f"{path} holds no key: delete it, and the next start writes a new one"
        raise ConfigurationError([Finding("state_dir", message)])
    return key


def _bearer(authorization: str) -> str | None:
    """Return what is presented (RFC 6750 2.1); ``None`` where the scheme is another."""
    scheme, _, secret = authorization.partition(" ")
    return secret.strip(" ") if scheme.lower() == "bearer" else None


def _unknown_key() -> Problem:
    return _unauthenticated("The caller key is not known here.", error="invalid_token")


def _unauthenticated(what: str, *, error: str | None = None) -> Problem:
    challenge = 'Bearer realm="tokenward"' + (f', error="{error}"' if error else "")
    return Problem(
        401,
        "unauthenticated",
        f"{what} Send 'Authorization: Bearer KEY' with the key of a configured caller, or come "
        "through the Unix socket with an allowed uid.",
        headers={"WWW-Authenticate": challenge},
    )


def _new_key(entropy: Entropy) -> str:
    return "tw_" + base64.urlsafe_b64encode(entropy(_KEY_BYTES)).rstrip(b"=").decode("ascii")


def _write_once(path: Path, key: str, *, unique: str) -> None:
    """Put ``key`` at ``path`` unless another process was first."""
    draft = path.with_name(f".{path.name}.{unique}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails where the name is taken: no window between the look and the deed.
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
