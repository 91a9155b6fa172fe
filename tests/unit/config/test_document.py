"""YAML text to plain values: what is kept as written, and what is refused where."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config.document import parse, read_document
from daemon.domain.errors import ConfigurationError, Finding


def _findings(text: str) -> tuple[Finding, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, source="t.yaml")
    return caught.value.findings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("a: 1", {"a": 1}),
        ("a: -7", {"a": -7}),
        ("a: 0123", {"a": "0123"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 0x1f", {"a": "0x1f"}),
        (f"a: {'9' * 5000}", {"a": "9" * 5000}),
        ("a: 0.5", {"a": 0.5}),
        ("a: .inf", {"a": ".inf"}),
        ("a: 2026-11-01", {"a": "2026-11-01"}),
        ("a: off", {"a": "off"}),
        ("%YAML 1.1\n---\na: off", {"a": False}),
        ("a: !!int word", {"a": "word"}),
        ("a: !!float word", {"a": "word"}),
        ("a: =", {"a": "="}),
        ("a: null", {"a": None}),
        ("a:", {"a": None}),
        ("a: [x, [y]]", {"a": ["x", ["y"]]}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 1}\nd: {<<: *x, c: 2}", {"a": {"b": 1, "c": 1}, "d": {"b": 1, "c": 2}}),
        (
            "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne: {<<: [*x, *y]}",
            {"a": {"b": 1}, "c": {"b": 2, "d": 3}, "e": {"b": 1, "d": 3}},
        ),
    ],
)
def test_values(text: str, value: object) -> None:
    """Text becomes plain values; only plain decimal digits become a whole number."""
    assert parse(text, source="t.yaml") == value


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a: [1", "t.yaml:1:6"),
        ("a: 1\nb: [::1]:70", "t.yaml:2:9"),
        ("a:\n\t- 1", "t.yaml:2:1"),
        ("a: @x", "t.yaml:1:4"),
        ("a: 1\n---\nb: 1", "t.yaml:2:1"),
        ("a: *nowhere", "t.yaml:1:4"),
        ("a: !tag!nowhere x", "t.yaml:1:4"),
        ("a: \x00", "t.yaml"),
        ("a: " + "[" * 5000, "t.yaml"),
    ],
)
def test_syntax(text: str, path: str) -> None:
    """What is not YAML is one finding with line and column, and none of the text."""
    (finding,) = _findings(text)
    assert finding.path == path
    assert "nowhere" not in finding.message


def test_every_duplicate_key() -> None:
    """Each key that is there twice is reported with its path and both lines."""
    text = "a: {b: 1, b: hush}\nlist:\n- c: 1\n  'c': hush\na: hush\n"
    found = [(one.path, one.message) for one in _findings(text)]
    message = "this key is there twice, first in line {}; remove one of them (t.yaml, line {})"
    assert found == [
        ("a.b", message.format(1, "1, column 11")),
        ("list[0].c", message.format(3, "4, column 3")),
        ("a", message.format(1, "5, column 1")),
    ]


@pytest.mark.parametrize(
    ("text", "path", "fragment"),
    [
        ("a: !!python/object:os.system hush", "a", "YAML tags"),
        ("a: !!binary aHVzaA==", "a", "YAML tags"),
        ("a: !!set {hush}", "a", "YAML tags"),
        ("a: !env hush", "a", "YAML tags"),
        ("a: &x [*x]", "a[0]", "refers to what contains it"),
        ("a: &x {b: {<<: *x}}", "a.b.<<", "refers to what contains it"),
        ("? [1]\n: 2", "", "must be a word"),
        ("a: {<<: hush}", "a.<<", "needs a mapping"),
    ],
)
def test_refused_features(text: str, path: str, fragment: str) -> None:
    """Tags, self-references and keys that are no words are findings with a path."""
    found = _findings(text)
    assert [one for one in found if one.path.replace('"', "") == path and fragment in one.message]
    assert "hush" not in str(found)


def test_aliases_cost_nothing() -> None:
    """Aliases of aliases share one value instead of multiplying it."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert isinstance(parse("\n".join(lines), source="t.yaml"), dict)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"a: \xff", "byte 3 is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "larger than 1 MiB"),
    ],
)
def test_unusable_file(tmp_path: Path, content: bytes, fragment: str) -> None:
    """A file that cannot be a configuration is refused before it is parsed."""
    file = tmp_path / "t.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=fragment):
        read_document(file)


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("absent.yaml", "there is no such file"), (".", "cannot be read"), ("a\0b", "cannot be read")],
)
def test_unreadable_file(tmp_path: Path, name: str, fragment: str) -> None:
    """A file that is named and cannot be read is a finding that names it."""
    with pytest.raises(ConfigurationError, match=fragment):
        read_document(tmp_path / name)


def test_byte_order_mark(tmp_path: Path) -> None:
    """A byte order mark at the start of the file is not part of the first key."""
    file = tmp_path / "t.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_document(file) == {"a": 1}
