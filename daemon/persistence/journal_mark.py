"""Up to where the journal's files hold nothing that is not settled, so that a start skips them.

The hard idea: the mark may be behind, never ahead. It is written when a file is full, of files
that nobody writes to, and one that is lost or torn only makes the next start read more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

_NAME = "settled"
# The file in use and the one before it are always read: little, and all that a crash may have torn.
_ALWAYS_READ = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """All files up to ``through`` are settled; ``keys`` are the ids that each of them needs."""

    through: int = 0
    keys: Mapping[int, frozenset[str]] = field(default_factory=dict)


def settled_through(current: int, holding: Collection[int]) -> int:
    """Return the last file before which, and in which, all is settled. Pure.

    ``current`` is the number of the file in use, ``holding`` are those noted for what is not.
    """
    return min([current, *holding]) - _ALWAYS_READ


def read_mark(directory: Path) -> Mark:
    """Return what was marked last; one that cannot be read marks nothing."""
    try:
        values = orjson.loads((directory / _NAME).read_bytes())
        return Mark(
            through=int(values["through"]),
            keys={int(number): frozenset(ids) for number, ids in values["keys"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Mark()


def write_mark(directory: Path, mark: Mark) -> None:
    """Replace the mark. Where the disk refuses, the one before stays."""
    keys = {str(number): sorted(ids) for number, ids in mark.keys.items()}
    draft = directory / f"{_NAME}.new"
    with suppress(OSError):
        draft.write_bytes(orjson.dumps({"through": mark.through, "keys": keys}))
        draft.replace(directory / _NAME)
