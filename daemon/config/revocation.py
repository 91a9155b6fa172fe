"""How tokens are revoked at a provider: RFC 7009, or what it has instead."""

from __future__ import annotations

from daemon.config.parameters import PROTOCOL_PARAMETERS, parameter
from daemon.config.reading import OpenSection
from daemon.config.schema import REVOCATION_REQUEST
from daemon.config.values import InvalidValueError, boolean, one_of, text
from daemon.domain.provider import (
    RequestFormat,
    RevocationAuthentication,
    RevocationRequest,
)

_METHODS = ("POST", "GET", "DELETE")
_TOKENS = ("refresh_token", "access_token")
_LONGEST_NAME = 100


def revocation_request(top: OpenSection) -> RevocationRequest:
    """Return what stands under ``revocation_request`` of a provider."""
    section, default = top.within("revocation_request", REVOCATION_REQUEST), RevocationRequest()
    request = RevocationRequest(
        method=section.get("method", _method, default.method),
        format=section.get("format", one_of(RequestFormat), default.format),
        authentication=section.get(
            "authentication", one_of(RevocationAuthentication), default.authentication
        ),
        token_param=_token_param(section, default.token_param),
        sends_hint=section.get("sends_hint", boolean, default=default.sends_hint),
        tokens=section.each("tokens", _token) or default.tokens,
        params=_params(section),
        on_reconnect=section.get("on_reconnect", boolean, default=default.on_reconnect),
    )
    if "revocation_request" in top:
        _check(top, section, request)
    return request


def _check(top: OpenSection, section: OpenSection, request: RevocationRequest) -> None:
    reading = section.reading
    if section.raw("tokens") == []:
        message = f"is an empty list; name {' or '.join(_TOKENS)}, or remove it"
        reading.find(section.at("tokens"), message)
    is_bearer = request.authentication is RevocationAuthentication.BEARER
    if "token_param" in section and section.raw("token_param") is None and not is_bearer:
        message = (
            "null sends the token in the Authorization header only; that needs authentication: "
            "bearer beside it"
        )
        reading.find(section.at("token_param"), message)
    if request.method == "GET" and request.format is RequestFormat.JSON:
        message = "is a body, and a GET has none; write format: form, which then is the query"
        reading.find(section.at("format"), message)
    _check_params(section, request)
    if top.raw("revocation_endpoint") is None and top.raw("issuer") is None:
        message = "has no effect without revocation_endpoint; set that, or remove this"
        reading.warn(section.trail, message)


def _check_params(section: OpenSection, request: RevocationRequest) -> None:
    """Find parameters that the request has by itself."""
    own = {request.token_param} | ({"token_type_hint"} if request.sends_hint else set())
    if request.authentication is RevocationAuthentication.CLIENT:
        own |= PROTOCOL_PARAMETERS
    for name in request.params:
        trail = (*section.at("params"), name)
        if name in own or name == "client_secret":
            section.reading.find(
                trail, "is set by tokenward itself and cannot be set here; remove it"
            )


def _params(section: OpenSection) -> dict[str, str]:
    found: dict[str, str] = {}
    entries = section.reading.members(section.at("params"), section.raw("params"))
    for trail, name, value in entries:
        read = section.reading.read(trail, value, parameter)
        if not name:
            section.reading.find(trail, "a parameter must have a name")
        elif read is not None:
            found[name] = read
    return found


def _token_param(section: OpenSection, default: str | None) -> str | None:
    if "token_param" in section and section.raw("token_param") is None:
        return None
    return section.get("token_param", _name, default)


def _name(value: object) -> str | None:
    name = text(value)
    if not name.isprintable() or " " in name or len(name) > _LONGEST_NAME:
        raise InvalidValueError("must be the name of a parameter, such as token, or null")
    return name


def _method(value: object) -> str:
    if isinstance(value, str) and value in _METHODS:
        return value
    raise InvalidValueError(f"must be one of {', '.join(_METHODS)}")


def _token(value: object) -> str:
    if isinstance(value, str) and value in _TOKENS:
        return value
    raise InvalidValueError(f"must be one of {', '.join(_TOKENS)}")
