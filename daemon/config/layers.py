"""Layers of settings: flags over environment over file. Only keys that are sections are merged."""

from __future__ import annotations

import os
from collections.abc import Mapping

from daemon.config.schema import Key, Listed, Named, Section, TextMap


def merged(lower: object, upper: object, key: Key | None) -> object:
    """Return ``lower`` with ``upper`` on top.

    Two mappings are merged key by key where the schema has a section or a map of names; everything
    else (a list, a secret reference, a rotation) is replaced whole.
    """
    if key is None or not isinstance(key, Section | Named | TextMap):
        return upper
    if lower is None or not isinstance(upper, Mapping):
        return upper
    if not isinstance(lower, Mapping):
        # Wrong where it stands: kept, so that it is reported instead of silently covered.
        return lower
    result = dict(lower)
    for name, value in upper.items():
        below = child(key, name)
        result[name] = merged(result[name], value, below) if name in result else value
    return result


def child(key: Key, name: object) -> Key | None:
    """Return the schema of ``name`` inside ``key``; ``None`` where it has none."""
    match key:
        case Section():
            return key.keys.get(name) if isinstance(name, str) else None
        case Named(section) | Listed(section):
            return section
        case _:
            return None


def nested(overrides: Mapping[str, object], schema: Section) -> object:
    """Return dotted ``overrides`` (``{"log.level": "debug"}``) as nested mappings.

    ``None`` means that the flag was not given. Paths become text.
    """
    result: object = {}
    for dotted, value in overrides.items():
        if value is None:
            continue
        layer: object = os.fspath(value) if isinstance(value, os.PathLike) else value
        for name in reversed(dotted.split(".")):
            layer = {name: layer}
        result = merged(result, layer, schema)
    return result
