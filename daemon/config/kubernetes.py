"""The cluster whose service account tokens callers may present, and which accounts are callers."""

from __future__ import annotations

import re
from pathlib import Path

from daemon.config import references
from daemon.config.reading import OpenSection, Reading
from daemon.config.schema import KUBERNETES
from daemon.config.settings import Kubernetes, ServiceAccount, Settings, Verification
from daemon.config.urls import public_url, webhook_url
from daemon.config.values import InvalidValueError, one_of, text

_DEFAULT = Kubernetes(audience="")
_LONGEST_IDENTIFIER = 512
# A namespace is a label, a service account's name a subdomain (RFC 1123), in lower case.
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.ASCII)


def kubernetes(top: OpenSection) -> Kubernetes | None:
    """Return the cluster; ``None`` where the section is absent."""
    if top.raw("kubernetes") is None:
        return None
    section = top.within("kubernetes", KUBERNETES)
    message = "is missing; choose a name that only tokens for this daemon carry, such as tokenward"
    found = Kubernetes(
        audience=section.required("audience", _identifier, message) or "",
        issuer=section.optional("issuer", _identifier),
        verification=section.get("verification", one_of(Verification), _DEFAULT.verification),
        api_server=section.get("api_server", public_url, _DEFAULT.api_server),
        jwks_url=section.optional("jwks_url", webhook_url),
        jwks_file=_path(section, "jwks_file"),
        ca_file=_ca_file(section),
        token_file=_path(section, "token_file") or _DEFAULT.token_file,
    )
    _check(section, found)
    return found


def service_account(section: OpenSection) -> ServiceAccount | None:
    """Return a caller's service account; ``None`` with a finding where it is not named in full."""
    namespace = section.required("namespace", _namespace, "is missing; name the pods' namespace")
    name = section.required("name", _name, "is missing; name the pods' service account")
    return None if namespace is None or name is None else ServiceAccount(namespace, name)


def check_service_accounts(reading: Reading, settings: Settings) -> None:
    """Find callers that no cluster vouches for, and warn of a cluster that nobody comes from."""
    positions = [
        position
        for position, caller in enumerate(settings.callers)
        if caller.service_account is not None
    ]
    if settings.kubernetes is not None and not positions:
        reading.warn(("kubernetes",), "has no effect: no caller has a service_account")
    if settings.kubernetes is None:
        message = "needs the section kubernetes, which says how its tokens are verified"
        for position in positions:
            reading.find(("callers", position, "service_account"), message)


def _check(section: OpenSection, found: Kubernetes) -> None:
    reading = section.reading
    is_by_keys = found.verification is Verification.JWKS
    if is_by_keys and section.raw("issuer") is None:
        message = (
            "is missing; `kubectl get --raw /.well-known/openid-configuration` prints the "
            "cluster's issuer"
        )
        reading.find(section.at("issuer"), message)
    if found.audience and found.audience in {found.issuer, found.api_server}:
        message = (
            "must be a name of its own, not the API server's: a token for the API server must not "
            "be worth anything here, nor one for us there"
        )
        reading.find(section.at("audience"), message)
    for key in ("jwks_url", "jwks_file"):
        if section.raw(key) is not None and not is_by_keys:
            message = "has no effect with verification: token_review; remove it"
            reading.find(section.at(key), message)
    if section.raw("jwks_url") is not None and section.raw("jwks_file") is not None:
        reading.find(section.at("jwks_file"), "cannot stand beside jwks_url; remove one of them")


def _ca_file(section: OpenSection) -> Path | None:
    """Return whose signature counts: the cluster's authority, except at a place outside it."""
    if "ca_file" not in section:
        return _DEFAULT.ca_file if section.raw("jwks_url") is None else None
    return _path(section, "ca_file")


def _path(section: OpenSection, key: str) -> Path | None:
    value = section.raw(key)
    return None if value is None else references.path(section.reading, section.at(key), value)


def _identifier(value: object) -> str:
    identifier = text(value)
    if " " in identifier or len(identifier) > _LONGEST_IDENTIFIER:
        raise InvalidValueError(
            f"must be a name or URL without spaces, of at most {_LONGEST_IDENTIFIER} characters"
        )
    return identifier


def _namespace(value: object) -> str:
    namespace = text(value)
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidValueError(
            "must be a namespace: 1 to 63 lower-case letters, digits or -, not at its ends"
        )
    return namespace


def _name(value: object) -> str:
    name = text(value)
    if not _NAME.fullmatch(name):
        raise InvalidValueError(
            "must be a service account's name: lower-case letters, digits, - or ., not at its ends"
        )
    return name
