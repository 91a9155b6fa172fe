"""Where the daemon is: the few settings that a caller on the command line needs.

The hard idea: most of the configuration does not concern a caller, and may not even be complete
in a person's shell (client secrets in environment variables of the service). So only what says
where the daemon listens and keeps its state is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon.config import references
from daemon.config.document import read_document
from daemon.config.environment import environment_layer
from daemon.config.layers import merged
from daemon.config.listeners import listeners
from daemon.config.loading import DEFAULT_STATE_DIR, find_config
from daemon.config.reading import OpenSection, Reading
from daemon.config.schema import LISTEN, SETTINGS
from daemon.config.settings import Listen
from daemon.domain.errors import ConfigurationError

_NEEDED = ("listen", "state_dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the daemon is. ``has_callers``: its ``api.key`` is not in use."""

    state_dir: Path
    listen: Listen
    has_callers: bool


def find_place(config: Path | None, environ: Mapping[str, str], working_directory: Path) -> Place:
    """Return where the daemon of this configuration is.

    Raises:
        ConfigurationError: the file cannot be read, or ``listen`` or ``state_dir`` is wrong.
    """
    path = find_config(config, environ, working_directory)
    document = None if path is None else read_document(path)
    entries = document.get("providers") if isinstance(document, Mapping) else None
    names = [n for n in entries if isinstance(n, str)] if isinstance(entries, Mapping) else []
    variables = environment_layer(environ, providers=names)
    reading = Reading(
        environ=environ,
        directory=working_directory if path is None else path.absolute().parent,
        working_directory=working_directory,
        origins=variables.origins,
    )
    top = OpenSection(reading, (), merged(document, variables.values, SETTINGS), SETTINGS)
    given = top.raw("state_dir") if "state_dir" in top else DEFAULT_STATE_DIR
    state_dir = references.path(reading, top.at("state_dir"), given)
    listen = listeners(top.within("listen", LISTEN))
    findings = [f for f in reading.findings if f.path.split(".")[0] in _NEEDED]
    if findings or state_dir is None:
        raise ConfigurationError(findings or reading.findings)
    return Place(state_dir=state_dir, listen=listen, has_callers=bool(top.raw("callers")))
