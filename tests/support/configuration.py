"""Configurations as text: load one from a directory, and collect what is found wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from daemon.config.loading import load_settings
from daemon.config.settings import Settings
from daemon.domain.errors import ConfigurationError, Finding
from daemon.domain.role import Role

NO_VARIABLES: Mapping[str, str] = {}

PROVIDER = "issuer: https://as.example, client_id: me, client_secret: {env: CLIENT_SECRET}"
"""The inside of the smallest provider entry; ``CLIENT_SECRET`` is set by ``Desk``."""


@dataclass(frozen=True)
class Desk:
    """A directory to write configurations and secrets into, and a small environment."""

    directory: Path
    variables: Mapping[str, str] = field(
        default_factory=lambda: {"HOME": "/home/somebody", "CLIENT_SECRET": "not-really-secret"}
    )

    def write(self, name: str, content: str | bytes, *, mode: int = 0o600) -> Path:
        """Write a file into the directory."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def load(
        self,
        text: str | bytes,
        *,
        environ: Mapping[str, str] = NO_VARIABLES,
        overrides: Mapping[str, object] | None = None,
        role: Role = Role.ALL,
    ) -> Settings:
        """Load ``text`` as the configuration file."""
        return load_settings(
            path=self.write("tokenward.yaml", text),
            environ={**self.variables, **environ},
            overrides=overrides or {},
            role=role,
        )

    def findings(
        self,
        text: str | bytes,
        *,
        environ: Mapping[str, str] = NO_VARIABLES,
        overrides: Mapping[str, object] | None = None,
        role: Role = Role.ALL,
    ) -> tuple[Finding, ...]:
        """Return what is wrong with ``text``; nothing where it loads."""
        try:
            self.load(text, environ=environ, overrides=overrides, role=role)
        except ConfigurationError as error:
            return error.findings
        return ()
