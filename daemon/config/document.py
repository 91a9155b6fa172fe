"""YAML text to plain values, with every duplicate key found and no scalar silently reinterpreted.

Built on ruamel.yaml's node tree instead of its constructor, whose errors quote values (which may be
secrets), stop at the first duplicate, and turn ``0123`` into 123 and ``2026-11-01`` into a date.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from daemon.config.trail import Trail, render
from daemon.domain.errors import ConfigurationError, Finding

# A thousand providers fit; a device or a wrong file named by mistake is refused unparsed.
_LARGEST_FILE = 1024 * 1024
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)
# Beyond this many digits Python itself refuses to convert, and no setting is that large.
_MOST_DIGITS = 18
_NOT_YAML = (
    "this is not valid YAML; check the indentation (spaces, never tabs), brackets and quotes "
    "around here. Text that begins with one of [ ] { } & * ! | > % @ or contains ': ' or ' #' "
    "needs quotes"
)


def read_document(path: Path) -> object:
    """Return the content of the YAML file at ``path``; ``None`` where it is empty.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML or has duplicate keys. No value of
            the file is part of the text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise _failure(
            path, "there is no such file; correct --config or TOKENWARD_CONFIG, which name it"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the name cannot be used"
        raise _failure(path, f"the file cannot be read ({reason.lower()})") from error
    if len(raw) > _LARGEST_FILE:
        raise _failure(path, "the file is larger than 1 MiB; is it a tokenward configuration?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _failure(path, f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse(text, source=str(path))


def parse(text: str, *, source: str) -> object:
    """Return what YAML ``text`` stands for: dict, list, str, int, float, bool or None.

    Only plain decimal whole numbers become ``int``; dates stay text. ``source`` names the text in
    findings.

    Raises:
        ConfigurationError: with a place, and without a value of ``text``.
    """
    reading = _Construction(source)
    try:
        # Untyped in ruamel.yaml; _Construction tells the kinds of node apart.
        yaml: Any = YAML(typ="safe", pure=True)
        # An anchor may be used again (YAML 1.2.2 7.1). The warning would quote lines of the file.
        yaml.composer.warn_double_anchors = False
        root = yaml.compose(text)
        value = None if root is None else reading.value(root, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigurationError([Finding(place, _NOT_YAML)]) from None
    except RecursionError:
        finding = Finding(source, "the YAML is nested too deeply; remove levels")
        raise ConfigurationError([finding]) from None
    except (YAMLError, ValueError):
        # ValueError: an impossible escape such as "\UFFFFFFFF".
        raise ConfigurationError(
            [Finding(source, f"{_NOT_YAML}. Control characters are not allowed either")]
        ) from None
    if reading.findings:
        raise ConfigurationError(reading.findings)
    return value


class _Construction:
    """Builds values from one node tree, collecting what is wrong with it."""

    def __init__(self, source: str) -> None:
        self.findings: list[Finding] = []
        self._source = source
        self._built: dict[int, object] = {}
        self._open: set[int] = set()

    def value(self, node: Node, trail: Trail) -> object:
        """Return the value of ``node``. An alias yields the same object as its anchor."""
        if id(node) in self._built:
            return self._built[id(node)]
        if id(node) in self._open:
            self._find(node, trail, "this alias refers to what contains it; write it out")
            return None
        self._open.add(id(node))
        built = self._build(node, trail)
        self._open.remove(id(node))
        self._built[id(node)] = built
        return built

    def _build(self, node: Node, trail: Trail) -> object:
        kind = str(node.tag).removeprefix(_TAG)
        match node:
            case MappingNode() if kind == "map":
                return self._mapping(node, trail)
            case SequenceNode() if kind == "seq":
                return [self.value(item, (*trail, i)) for i, item in enumerate(node.value)]
            case ScalarNode() if kind in _SCALARS:
                return _scalar(kind, str(node.value))
            case _:
                self._find(node, trail, "YAML tags (!…) are not used here; put text in quotes")
                return None

    def _mapping(self, node: MappingNode, trail: Trail) -> dict[object, object]:
        own: dict[object, object] = {}
        lines: dict[object, int] = {}
        inherited: dict[object, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                inherited = {**self._merged(value_node, trail), **inherited}
                continue
            key = self._key(key_node, trail)
            place = (*trail, key if isinstance(key, str) else "?")
            if key in lines:
                self._find(
                    key_node,
                    place,
                    f"this key is there twice, first in line {lines[key]}; remove one of them",
                )
                continue
            lines[key] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, place)
        return {**inherited, **own}

    def _key(self, node: Node, trail: Trail) -> object:
        if isinstance(node, ScalarNode):
            return self.value(node, trail)
        self._find(node, trail, "a key must be a word, not a list or a mapping")
        return None

    def _merged(self, node: Node, trail: Trail) -> dict[object, object]:
        """Return what ``<<`` brings in; of several mappings the earlier one wins."""
        value = self.value(node, (*trail, "<<"))
        sources = value if isinstance(value, list) else [value]
        merged: dict[object, object] = {}
        for source in sources:
            if isinstance(source, dict):
                merged = {**source, **merged}
            else:
                self._find(node, (*trail, "<<"), "a merge key needs a mapping or a list of them")
        return merged

    def _find(self, node: Node, trail: Trail, message: str) -> None:
        mark = node.start_mark
        place = f"{self._source}, line {mark.line + 1}, column {mark.column + 1}"
        self.findings.append(Finding(render(trail), f"{message} ({place})"))


_SCALARS = frozenset({"str", "null", "bool", "int", "float", "timestamp", "value"})


def _scalar(kind: str, text: str) -> object:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in {"true", "yes", "on"}
    if kind == "int" and _DECIMAL.fullmatch(text) and len(text) <= _MOST_DIGITS:
        return int(text)
    if kind == "float":
        return _float(text)
    return text


def _float(text: str) -> object:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _failure(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Finding(str(path), message)])
