"""Everything that can go wrong, as a closed tree.

::

    TokenwardError
    ├── ConfigurationError        the configuration names what is wrong, with YAML paths   exit 2
    ├── StorageError
    │   ├── DatabaseUnavailableError  the database cannot be used right now; try again
    │   ├── SchemaTooNewError         a newer tokenward has migrated this database
    │   └── KeyringError              a key is wrong or missing; no row was touched
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


class KeyringError(StorageError):
    """An encryption key is wrong or missing. No row was touched."""


class Problem(TokenwardError):
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
