"""What a server does with a refresh token that has been used (RFC 9700 4.14.2)."""

from __future__ import annotations

from datetime import timedelta

from daemon.config.reading import OpenSection
from daemon.config.values import InvalidValueError, positive_duration
from daemon.domain.provider import Rotation, RotationKind

# Half of it is the time in which a refresh in doubt may be sent again; less leaves no room for one.
SHORTEST_GRACE = timedelta(seconds=20)
_ROTATION_WORDS = "must be static, overlap, strict or {grace: 30s}"


def rotation(section: OpenSection) -> Rotation:
    """Return what stands under ``rotation``: a word, or ``{grace: …}``."""
    value = section.raw("rotation")
    if not isinstance(value, dict):
        return section.get("rotation", _rotation_kind, Rotation())
    trail = section.at("rotation")
    if value.keys() != {"grace"}:
        section.reading.find(trail, _ROTATION_WORDS)
        return Rotation()
    grace = section.reading.read((*trail, "grace"), value["grace"], positive_duration)
    if grace is None:
        return Rotation()
    if grace < SHORTEST_GRACE:
        message = "below 20s there is no time to send again, so this behaves as strict"
        section.reading.warn((*trail, "grace"), message)
        return Rotation()
    return Rotation(RotationKind.GRACE, grace)


def _rotation_kind(value: object) -> Rotation:
    kinds = (RotationKind.STATIC, RotationKind.OVERLAP, RotationKind.STRICT)
    for kind in kinds:
        if value == kind.value:
            return Rotation(kind)
    raise InvalidValueError(_ROTATION_WORDS)
