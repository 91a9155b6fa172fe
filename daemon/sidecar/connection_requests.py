"""The bodies that create and change connections: JSON objects become values, or every fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daemon.domain.connection import Connection, Status, is_connection_id
from daemon.domain.provider import Provider
from daemon.persistence.life import Change
from daemon.sidecar.members import (
    FIELDS_RULE,
    Findings,
    ImportedTokens,
    patch_fields,
    patch_metadata,
    read_fields,
    read_label,
    read_metadata,
    read_provider,
    read_scopes,
    read_tokens,
)
from daemon.sidecar.members import read_return_url as return_url_member

_MEMBERS = {"provider", "id", "fields", "scopes", "metadata", "return_url", "tokens"}
# In a Change: nobody names it any more but the provider's replies.
_COMPUTED_LABEL = ""
_CHANGEABLE = {"label", "metadata", "fields"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A checked ``POST /v1/connections`` body."""

    provider: Provider
    id: str | None
    fields: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...]
    metadata: Mapping[str, str]
    return_url: str | None
    tokens: ImportedTokens | None


def read_create_request(
    body: Mapping[str, Any],
    *,
    providers: Mapping[str, Provider],
    return_urls: Iterable[str],
) -> CreateRequest:
    """Check a ``POST /v1/connections`` body.

    Raises:
        Problem: 422 ``invalid_request`` whose ``errors`` name each bad member.
    """
    findings = Findings()
    findings.refuse_strangers(body, _MEMBERS)
    provider = read_provider(body.get("provider"), providers, findings)
    wanted_id = body.get("id")
    findings.unless(
        wanted_id is None or (isinstance(wanted_id, str) and is_connection_id(wanted_id)),
        "id",
        "must be 1 to 128 of A-Z a-z 0-9 . _ : @ - and begin with a letter or a digit",
    )
    return_url = return_url_member(body.get("return_url"), return_urls, findings)
    scopes = read_scopes(body.get("scopes"), findings)
    metadata = read_metadata(body.get("metadata"), findings)
    tokens = read_tokens(body.get("tokens"), findings)
    fields: dict[str, str] = {}
    if provider is not None:
        complete = body.get("tokens") is not None
        fields = read_fields(body.get("fields"), provider, findings, complete=complete)
    elif not isinstance(body.get("fields"), dict | None):
        findings.add("fields", FIELDS_RULE)
    findings.raise_if_any()
    if provider is None:
        raise AssertionError("an unknown provider is a finding")
    return CreateRequest(
        provider=provider,
        id=wanted_id,
        fields=fields,
        scopes=scopes if scopes is not None else provider.scopes,
        metadata=metadata,
        return_url=return_url,
        tokens=tokens,
    )


def read_change_request(
    body: Mapping[str, Any], connection: Connection, *, provider: Provider | None
) -> Change:
    """Check a ``PATCH /v1/connections/{id}`` body against what is stored.

    A JSON merge patch (RFC 7396): a member that is absent stays, ``null`` removes a name of
    ``metadata`` or ``fields``. Whom nobody will ask any more must have every required field.
    ``provider`` is ``None`` where it is not configured any more: its fields cannot be checked.

    Raises:
        Problem: 422 ``invalid_request`` whose ``errors`` name each bad member.
    """
    findings = Findings()
    findings.refuse_strangers(body, _CHANGEABLE)
    label = read_label(body.get("label"), findings)
    metadata = fields = None
    if "metadata" in body:
        metadata = patch_metadata(body["metadata"], connection.metadata, findings)
    if "fields" in body and provider is None:
        findings.add("fields", "cannot be changed: the provider is not configured any more")
    elif "fields" in body and provider is not None:
        complete = connection.status is not Status.PENDING
        fields = patch_fields(
            body["fields"], connection.fields, provider, findings, complete=complete
        )
    findings.raise_if_any()
    if "label" in body and label is None:
        label = _COMPUTED_LABEL
    return Change(label=label, metadata=metadata, fields=fields)


def read_return_url(
    body: Mapping[str, Any], *, default: str | None, return_urls: Iterable[str]
) -> str | None:
    """Check a ``POST …/authorize`` body; its one member is ``return_url``.

    Raises:
        Problem: 422 ``invalid_request``.
    """
    findings = Findings()
    findings.refuse_strangers(body, {"return_url"})
    wanted = return_url_member(body.get("return_url", default), return_urls, findings)
    findings.raise_if_any()
    return wanted
