"""Holds answers of the api listener against its own description."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import orjson
from jsonschema import Draft202012Validator, FormatChecker

from daemon.sidecar.openapi import document

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch")


@cache
def api_document() -> dict[str, Any]:
    """Return the description, read once."""
    return document()


def described_routes() -> set[str]:
    """Return ``METHOD path`` of everything that is described."""
    return {
        f"{method.upper()} {path}"
        for path, operations in api_document()["paths"].items()
        for method in operations
        if method in _METHODS
    }


def check_answer(
    method: str, target: str, *, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Fail where an answer is not as described; what is no described operation passes."""
    path = _path_of(target.partition("?")[0])
    operation = api_document()["paths"].get(path, {}).get(method.lower())
    if operation is None:
        return
    response = operation["responses"].get(str(status)) or operation["responses"].get("default")
    assert response is not None, f"{method} {path} is not said to answer {status}: {body!r}"
    response = _resolved(response)
    for name, header in response.get("headers", {}).items():
        assert name in headers, f"{method} {path} {status} lacks the header {name}"
        constant = _resolved(header)["schema"].get("const")
        assert constant is None or headers[name] == constant
    kinds = response.get("content", {})
    if kinds:
        kind = headers["Content-Type"].partition(";")[0]
        assert kind in kinds, f"{method} {path} {status} is {kind}"
        if kind.endswith("json"):
            _validator(path, method.lower(), str(status), kind).validate(orjson.loads(body))


def _path_of(path: str) -> str | None:
    """Return the described path, the most literal one first."""
    matching = [known for known in api_document()["paths"] if _pattern(known).fullmatch(path)]
    return min(matching, key=lambda known: known.count("{"), default=None)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    whole = re.sub(r"\\\{path\\\}", ".*", re.escape(path))
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", whole))


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = api_document()
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    resolved: dict[str, Any] = found
    return resolved


@cache
def _validator(path: str, method: str, status: str, kind: str) -> Draft202012Validator:
    responses = api_document()["paths"][path][method]["responses"]
    schema = _resolved(responses.get(status) or responses["default"])["content"][kind]["schema"]
    components = {"components": api_document()["components"]}
    return Draft202012Validator({**schema, **components}, format_checker=FormatChecker())
