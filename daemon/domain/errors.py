"""Everything that can go wrong, as a closed tree.

::

    TokenwardError
    ├── ConfigurationError        the configuration names what is wrong, with YAML paths   exit 2
    ├── StorageError
    │   ├── DatabaseUnavailableError  the database cannot be used right now; try again
    │   ├── SchemaError               the database is not what our migrations made
    │   ├── SchemaTooNewError         a newer tokenward has migrated this database
    │   ├── KeyringError              a key is wrong or missing; no row was touched
    │   └── DecryptionError           one ciphertext does not open where it stands
    ├── DiscoveryError            a provider's endpoints are not known and cannot be found out
    │   └── FieldError            ... because a connection's field is missing or cannot be used
    ├── VerificationUnavailableError  whether a service account token is good cannot be found out
    └── Problem                   an answer to a caller, RFC 9457

The ends of token requests are values (``daemon.domain.outcome``), not exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class TokenwardError(Exception):
    """Any error this program raises on purpose. Its text never holds a secret."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with the configuration: where (a YAML path), what, and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        """Return ``path: message``."""
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigurationError(TokenwardError):
    """The configuration cannot be used. Holds every finding, not only the first."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(map(str, findings)))
        self.findings = tuple(findings)


class StorageError(TokenwardError):
    """Something is wrong with what is stored or where."""


class DatabaseUnavailableError(StorageError):
    """The database cannot be used right now. What was asked may or may not have happened."""


class SchemaTooNewError(StorageError):
    """The database was migrated by a newer tokenward; this one would misread it."""


class SchemaError(StorageError):
    """The database is not what our migrations made, or one of them failed and was rolled back."""


class KeyringError(StorageError):
    """An encryption key is wrong or missing. No row was touched."""


class JournalError(StorageError):
    """The journal cannot take anything now; what it holds is safe."""


class DecryptionError(StorageError):
    """A ciphertext was changed, moved from another place, or needs a key that is not configured.

    ``key_id`` is ``None`` where not even that can be read.
    """

    def __init__(self, reason: str, *, connection: str, column: str, key_id: str | None) -> None:
        super().__init__(
            f"{column} of connection {connection!r} cannot be decrypted (key {key_id!r}): {reason}"
        )
        self.connection = connection
        self.column = column
        self.key_id = key_id


class DiscoveryError(TokenwardError):
    """A provider's endpoints are not known and cannot be found out. The text says what to do."""


class FieldError(DiscoveryError):
    """An endpoint needs a field of the connection that is missing or cannot be used there."""


class VerificationUnavailableError(TokenwardError):
    """Whether a service account token is good cannot be found out now. The text says why."""


class Problem(TokenwardError):  # noqa: N818 - the term of RFC 9457
    """An answer to a caller that is not what was asked for (RFC 9457).

    ``code`` becomes ``urn:tokenward:problem:CODE``; ``detail`` says what happened and what to
    do; ``members`` are further members of the body (``connection``, ``retry_after``, …).
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: object,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = {name: value for name, value in members.items() if value is not None}
