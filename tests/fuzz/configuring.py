"""What operators write: the configuration as a whole, and templates in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from warnings import catch_warnings, simplefilter

from daemon.config.document import parse
from daemon.config.loading import load_settings
from daemon.domain.errors import ConfigurationError
from daemon.domain.templates import (
    Template,
    TemplateError,
    begins_with_origin,
    host_names,
    parse_template,
    parse_url_template,
    render_label,
    render_text,
    render_url,
    stand_in,
)

CANARY = "config-canary-0123456789"
_ENVIRONMENT = {"HOME": "/nowhere", "SECRET": CANARY, "TOKENWARD_LOG__LEVEL": "debug"}


def configuration(data: bytes) -> None:
    """A file: settings, or every finding, none of which holds a value of the file."""
    directory = Path(tempfile.mkdtemp(prefix="fuzz-config-"))
    try:
        path = directory / "tokenward.yaml"
        path.write_bytes(data)
        with catch_warnings():
            # A library's warning goes to the log and may quote the file.
            simplefilter("error")
            settings = load_settings(path=path, environ=_ENVIRONMENT)
    except ConfigurationError as error:
        assert error.findings
        assert all(finding.message for finding in error.findings)
        assert CANARY not in str(error) or _is_key(data)
    else:
        assert CANARY not in repr(settings) or _is_shown(data)
    finally:
        shutil.rmtree(directory)


def _is_key(data: bytes) -> bool:
    """Tell whether the canary stands where names do: names are part of paths."""
    try:
        document = parse(data.decode("utf-8-sig"), source="x")
    except (ConfigurationError, UnicodeDecodeError):
        return False
    return any(CANARY in key for key in _keys(document, 0))


def _keys(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and depth < 8:
        for key, member in value.items():
            yield str(key)
            yield from _keys(member, depth + 1)
    elif isinstance(value, list) and depth < 8:
        for member in value:
            yield from _keys(member, depth + 1)


def _is_shown(data: bytes) -> bool:
    """Tell whether the canary was written anywhere but in a reference to ``SECRET``."""
    return b"canary" in data or b"\\" in data


def templates(data: bytes) -> None:
    """A template, then a value a line for ``a``, ``token.b`` and ``me.c``.

    Whatever the values, a URL keeps its host, its number of segments and its parameters.
    """
    text, *lines = data.decode("utf-8", "replace").split("\n")
    names = ("fields.a", "token.b", "me.c")
    values = dict(zip(names, lines, strict=False))
    _check_text(parse_template(text), values)
    try:
        template = parse_url_template(text)
        stand_in(template)
        url = render_url(template, values)
    except TemplateError as error:
        assert not any(len(value) > 20 and value in str(error) for value in values.values())
    else:
        _check_url(template, url, values)


def _check_text(template: Template, values: dict[str, str]) -> None:
    line = render_label(template, values)
    if line is not None:
        assert 0 < len(line) <= 200
        assert "\n" not in line or "\n" in template.text
        assert line == line.strip()
    try:
        render_text(template, values)
    except TemplateError:
        return
    used = [values.get(name, "") for name in template.names]
    assert all(used), "a name without a value"
    assert not any(letter < " " for value in used for letter in value), "a header could be broken"


def _check_url(template: Template, url: str, values: dict[str, str]) -> None:
    if not template.names or not _is_url(template):
        return
    plain = stand_in(template)
    wanted, found = urlsplit(plain), urlsplit(url)
    assert found.query.count("&") == wanted.query.count("&")
    assert _parameters(found.query) == _parameters(wanted.query)
    assert found.fragment == ""
    if begins_with_origin(template.text):
        # The value says where it leads; what comes behind it is the template's.
        return
    assert found.scheme == wanted.scheme
    assert found.path.count("/") == wanted.path.count("/")
    if host_names(template):
        assert found.netloc.count(".") == wanted.netloc.count(".")
        assert found.netloc.rpartition(".")[2] == wanted.netloc.rpartition(".")[2]
    else:
        assert found.netloc == wanted.netloc
    assert values


def _is_url(template: Template) -> bool:
    """Tell whether a template is one that the configuration would let pass."""
    plain = stand_in(template)
    if not plain.isascii() or not plain.isprintable() or " " in plain or "\\" in plain:
        return False
    try:
        parts = urlsplit(plain)
        return parts.port is not None or bool(parts.hostname) or plain.startswith("/")
    except ValueError:
        return False


def _parameters(query: str) -> list[str]:
    return [part.partition("=")[0] for part in query.split("&")]
