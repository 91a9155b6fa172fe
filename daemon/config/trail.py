"""Where a setting stands: a trail of keys and list positions, printed as a YAML path."""

from __future__ import annotations

import re

Trail = tuple[str | int, ...]
"""Keys and list positions from the top: ``("callers", 0, "name")``."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)
_LONGEST = 40


def render(trail: Trail) -> str:
    """Return the YAML path of ``trail``: ``callers[0].name``; odd keys in quotes, cut short."""
    text = ""
    for step in trail:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + _shown(step)
    return text


def _shown(key: str) -> str:
    if _PLAIN.fullmatch(key):
        return key
    printable = "".join(character if character.isprintable() else "?" for character in key)
    return f'"{printable[:_LONGEST]}…"' if len(printable) > _LONGEST else f'"{printable}"'
