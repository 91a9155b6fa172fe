"""Environment variables as a layer of settings: ``TOKENWARD_LOG__LEVEL`` is ``log.level``.

Names after the prefix are case-insensitive. The name of a provider matches a configured provider
without regard to case, ``-`` and ``_`` (``TOKENWARD_PROVIDERS__ACME_EU__CLIENT_ID`` sets
``providers.acme-eu.client_id``); where none matches, it makes a new one in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from daemon.config.document import parse
from daemon.config.layers import child, merged
from daemon.config.schema import SETTINGS, Key, Leaf, Listed, Named, Section, TextMap
from daemon.config.trail import Trail, render
from daemon.config.vocabulary import unknown_key
from daemon.domain.errors import ConfigurationError, Finding

PREFIX = "TOKENWARD_"
# Read by the command line (which file, which daemon, which key); never settings.
RESERVED = frozenset(f"{PREFIX}{name}" for name in ("CONFIG", "KEY", "API", "OUTPUT", "ROLE"))
# Kubernetes puts these into every pod of a namespace that has a Service called tokenward.
_SERVICE_LINK = re.compile(
    r"TOKENWARD_(?:[A-Z0-9]+_)*?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9]+)*|PORT_\d+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.*", re.DOTALL)
# A secret is taken verbatim, so only these exact openings make it a reference.
_REFERENCE = re.compile(r"\s*(?:\[\s*)?\{\s*[\"']?(?:file|env)[\"']?\s*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentLayer:
    """What the environment sets.

    ``origins`` says which variable set which trail. ``unknown`` holds findings by the variable's
    name: a variable that a ``{env: NAME}`` refers to is no setting and must not be reported.
    """

    values: object
    origins: Mapping[Trail, str]
    findings: tuple[Finding, ...]
    unknown: Mapping[str, Finding]


class _UnknownError(Exception):
    """The variable names no key; the text says why."""


def environment_layer(
    environ: Mapping[str, str], *, providers: Collection[str]
) -> EnvironmentLayer:
    """Return what ``TOKENWARD_…`` variables set. ``providers`` are the names known so far."""
    values: object = {}
    origins: dict[Trail, str] = {}
    findings: list[Finding] = []
    unknown: dict[str, Finding] = {}
    # The shallow first: TOKENWARD_LOG='{level: info}' lies under TOKENWARD_LOG__LEVEL.
    for variable in sorted(_ours(environ), key=lambda name: (name.count("__"), name)):
        try:
            trail, key = _place(variable, providers)
            value = _value(environ[variable], key, source=variable)
        except _UnknownError as error:
            unknown[variable] = Finding(variable, str(error))
        except ConfigurationError as error:
            findings += error.findings
        else:
            if (first := origins.setdefault(trail, variable)) != variable:
                message = f"sets {render(trail)}, as {first} does; remove one of them"
                findings.append(Finding(variable, message))
            values = merged(values, _wrapped(trail, value), SETTINGS)
    return EnvironmentLayer(
        values=values, origins=origins, findings=tuple(findings), unknown=unknown
    )


def _ours(environ: Mapping[str, str]) -> Iterator[str]:
    for name, value in environ.items():
        if name.startswith(PREFIX) and name not in RESERVED and not _is_service_link(name, value):
            yield name


def _is_service_link(name: str, value: str) -> bool:
    if name.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value):
        return True
    return _SERVICE_LINK.fullmatch(name) is not None


def _place(variable: str, providers: Collection[str]) -> tuple[Trail, Key]:
    """Return the trail that ``variable`` sets and its schema."""
    steps = variable.removeprefix(PREFIX).lower().split("__")
    key: Key = SETTINGS
    trail: Trail = ()
    while steps:
        match key:
            case Named(section):
                known = providers if trail == ("providers",) else ()
                name, steps = _named(steps, section, known)
                key = section
                trail = (*trail, name)
            case Section():
                step, *steps = steps
                trail, key = (*trail, step), _known(key, step)
            case TextMap():
                return (*trail, "__".join(steps)), Leaf.TEXT
            case _:
                raise _UnknownError(_no_deeper(key, trail))
    return trail, key


def _known(section: Section, step: str) -> Key:
    key = child(section, step)
    if key is None:
        raise _UnknownError(
            f"{unknown_key(step, section)}. (Variables that begin with {PREFIX} are settings; "
            "two underscores stand between levels.)"
        )
    return key


def _no_deeper(key: Key, trail: Trail) -> str:
    if isinstance(key, Listed):
        return f"{render(trail)} is a list; set it whole, as YAML: [{{…}}, {{…}}]"
    return f"{render(trail)} has no keys below it; remove the last part of the name"


def _named(steps: list[str], section: Section, names: Collection[str]) -> tuple[str, list[str]]:
    """Split the steps after ``PROVIDERS__`` or ``FIELDS__`` into a name and the rest.

    ``names`` are those that are configured, where they can be told from a new one.
    """
    known = section.keys.keys() | section.later
    end = next((i for i, step in enumerate(steps) if i and step in known), 1)
    spelled = "__".join(steps[:end])
    matches = [name for name in names if _folded(name) == _folded(spelled)]
    exact = [name for name in matches if name == spelled]
    if len(matches) > 1 and not exact:
        raise _UnknownError("fits more than one provider; set it in the configuration file")
    return (exact or matches or [spelled])[0], steps[end:]


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")


def _value(text: str, key: Key, *, source: str) -> object:
    match key:
        case Leaf.TEXT:
            return text
        case Leaf.NULLABLE_TEXT:
            return None if text == "null" else text
        case Leaf.SECRET:
            if text == "null":
                return None
            return parse(text, source=source) if _REFERENCE.match(text) else text
        case _:
            return parse(text, source=source)


def _wrapped(trail: Trail, value: object) -> object:
    for step in reversed(trail):
        value = {step: value}
    return value
