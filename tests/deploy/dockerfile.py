"""A Dockerfile as values: its stages and their instructions, as much of the language as we use."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.tokenward import ROOT

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; continued lines are joined, comments are gone."""

    word: str
    rest: str

    @property
    def command(self) -> list[str]:
        """Return what is executed: the exec form as it is, the shell form by a shell."""
        if self.rest.startswith("["):
            listed: list[str] = json.loads(self.rest)
            return listed
        return ["/bin/sh", "-c", self.rest]

    @property
    def flags(self) -> dict[str, str]:
        """Return the ``--name=value`` in front."""
        words = [word for word in shlex.split(self.rest) if word.startswith("--")]
        return dict(word.removeprefix("--").split("=", 1) for word in words)

    @property
    def words(self) -> list[str]:
        """Return the arguments that are no flags."""
        return [word for word in shlex.split(self.rest) if not word.startswith("--")]

    def assigned(self, known: dict[str, str]) -> dict[str, str]:
        """Return what an ENV or LABEL sets, with the variables in ``known`` filled in."""
        pairs = (word.split("=", 1) for word in shlex.split(self.rest))
        return {
            name: _VARIABLE.sub(lambda found: known.get(found[1], ""), value)
            for name, value in pairs
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage. ``name`` is empty for the last."""

    base: str
    name: str
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[Instruction]:
        """Return the instructions of one kind."""
        return [found for found in self.instructions if found.word == word]

    def one(self, word: str) -> Instruction:
        """Return the only instruction of one kind."""
        (found,) = self.all(word)
        return found


def stages(path: Path = DOCKERFILE) -> list[Stage]:
    """Return the stages of a Dockerfile."""
    found: list[tuple[Instruction, list[Instruction]]] = []
    for instruction in _instructions(path.read_text()):
        if instruction.word == "FROM":
            found.append((instruction, []))
        else:
            found[-1][1].append(instruction)
    return [
        Stage(base=start.words[0], name=(*start.words, "", "")[2], instructions=tuple(rest))
        for start, rest in found
    ]


def _instructions(text: str) -> Iterator[Instruction]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, rest = line.split(None, 1)
            yield Instruction(word, rest.strip())
