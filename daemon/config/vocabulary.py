"""Words for keys and choices that are not known: what was perhaps meant, and what there is."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from daemon.config.schema import Section

NOT_SUPPORTED = "is not supported by this version of tokenward; remove it"


def unknown_key(key: str, section: Section) -> str:
    """Return why ``key`` cannot stand in ``section``, with the nearest key that can."""
    if key in section.hints:
        return section.hints[key]
    if key in section.later:
        return NOT_SUPPORTED
    near = get_close_matches(key.lower().replace("-", "_"), section.keys, n=1, cutoff=0.6)
    if near:
        return f"is not a known key; did you mean {near[0]}?"
    return f"is not a known key; the keys here are {listing(section.keys)}"


def listing(names: Iterable[str]) -> str:
    """Return ``a, b, c``."""
    return ", ".join(names)
