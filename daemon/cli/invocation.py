"""What every command is told: the global options and the surroundings of the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

GLOBAL_OPTIONS: Final = ("--config", "--output", "--api", "--key-file")


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call of the program. ``environ`` may hold secrets."""

    environ: Mapping[str, str] = field(repr=False)
    working_directory: Path
    config: Path | None = None
    output: Output = Output.TABLE
    api: str | None = None
    key_file: Path | None = None

    @property
    def as_json(self) -> bool:
        """Tell whether the result is for a program."""
        return self.output is Output.JSON


def global_first(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with the global options in front, wherever they stood.

    So that ``tokenward check --config FILE`` means what it seems to. What follows ``--`` stays.
    """
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument in GLOBAL_OPTIONS:
            front.append(argument)
            value = next(remaining, None)
            front += [] if value is None else [value]
        elif argument.startswith(tuple(f"{option}=" for option in GLOBAL_OPTIONS)):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest
