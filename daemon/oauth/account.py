"""[test] Whose account it is: label and identity from a provider's replies. Pure.

The one hard idea: what cannot be known now is left as it was. A later test has only its own reply,
so a label or identity that also needs the token reply is not made again from half of its values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jmespath.parser import ParsedResult

from daemon.domain.account import Account
from daemon.domain.provider import Provider
from daemon.domain.templates import ROOTS, Template, look_up, render_label, text_of
from daemon.oauth.reply_body import select

Documents = Mapping[str, Any]
"""What names lead into: an entry for each of ``fields``, ``token``, ``me``, ``callback`` that is
at hand. One that is not at hand is missing, which is something else than empty."""

# An id is a column of an index: a longer one is a mistake.
_LONGEST = 255
# Up to here a float is the whole number that it looks like.
_LARGEST_EXACT = 2**53
# A value for a URL or header template.
_LONGEST_VALUE = 2_048
_DOTS = "•••"
# What is longer tells more than "com" does.
_LONGEST_TOP = 6
_WORD = re.compile(r"[\w•]+")
_MASKED = re.compile(r"\w?•••\w?")
_MAIL_HOST = re.compile(r"(?<=@)[\w•-]+(?:\.[\w•-]+)*")


def evaluate(
    provider: Provider,
    documents: Documents,
    *,
    scope: str,
    kept: Mapping[str, str] | None = None,
) -> Account:
    """Return what ``documents`` tell of the account; never raises, whatever is in them.

    ``scope`` is that of :func:`daemon.domain.provider.account_scope`; ``kept`` are the values that
    an earlier reply left (``Connection.reply_values``).
    """
    names = {name: look_up(name, documents) for name in _names(provider)}
    values = {**(kept or {}), **{name: value for name, value in names.items() if value}}
    return Account(
        account_id=_account_id(provider.account_id, documents),
        scope=scope,
        label=_label(provider, documents, values),
        reply_values=_reply_values(provider, names),
    )


def names_me(provider: Provider) -> bool:
    """Tell whether label or identity need the test's reply."""
    in_label = provider.label is not None and any(
        name.startswith(("me.", "me[")) for name in provider.label.names
    )
    return in_label or (
        provider.account_id is not None and "me" in _fields(provider.account_id.parsed)
    )


def mask(text: str) -> str:
    """Return ``text`` so that its owner knows it and others do not.

    Of each word of five characters and more the first and the last stay, of three and four the
    first, of shorter ones nothing; the three dots do not tell how many are missing. In the host
    of a mail address whose last label is short (``com``), that one stays, and of the others the
    first character. A text of up to three characters is dots alone. What is masked already stays
    as it is.
    """
    if len(text) <= len(_DOTS):
        return _DOTS
    pieces: list[str] = []
    end = 0
    for host in _MAIL_HOST.finditer(text):
        pieces += [_WORD.sub(_masked_word, text[end : host.start()]), _masked_host(host[0])]
        end = host.end()
    return "".join([*pieces, _WORD.sub(_masked_word, text[end:])])


def _names(provider: Provider) -> frozenset[str]:
    return provider.reply_names | frozenset(provider.label.names if provider.label else ())


def _account_id(selector: ParsedResult | None, documents: Documents) -> str | None:
    """Return the identity: text or a whole number. ``true`` would be everybody's.

    So would a number be that was rounded: two ids of 26 digits may be one to a float.
    """
    if selector is None or not _is_known(_fields(selector.parsed), documents):
        return None
    found = select(selector, {root: _plain(documents.get(root)) for root in ROOTS})
    text = None if isinstance(found, (bool, float)) and not _is_exact(found) else text_of(found)
    if text is None or not text.isprintable() or not text.strip() or len(text) > _LONGEST:
        return None
    return text


def _is_exact(found: float) -> bool:
    is_number = not isinstance(found, bool) and math.isfinite(found)
    return is_number and found == int(found) and abs(found) < _LARGEST_EXACT


def _label(provider: Provider, documents: Documents, values: Mapping[str, str]) -> str | None:
    template = provider.label
    if template is None or not _is_whole(template, documents, values):
        return None
    if provider.label_mask:
        values = {name: mask(value) for name, value in values.items()}
    return render_label(template, values)


def _is_whole(template: Template, documents: Documents, values: Mapping[str, str]) -> bool:
    """Tell whether all is at hand that could ever be; a name without a value may still be one."""
    missing = {name for name in template.names if name not in values}
    return _is_known({name.partition(".")[0] for name in missing}, documents)


def _is_known(names: set[str], documents: Documents) -> bool:
    return all(name in documents for name in names.intersection(ROOTS))


def _fields(node: Any) -> set[str]:
    """Return the names of all members that a JMESPath touches, at whatever depth."""
    names: set[str] = set()
    pending = [node]
    while pending:
        one = pending.pop()
        if one.get("type") == "field":
            names.add(str(one.get("value")))
        pending += [child for child in one.get("children", ()) if isinstance(child, dict)]
    return names


def _reply_values(provider: Provider, names: Mapping[str, str | None]) -> dict[str, str]:
    return dict(_usable(provider, names))


def _usable(provider: Provider, names: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    for name in sorted(provider.reply_names):
        value = names.get(name)
        is_reply = not name.startswith("fields.")
        if is_reply and value and value.isprintable() and len(value) <= _LONGEST_VALUE:
            yield name, value


def _plain(value: object) -> object:
    """Return what JMESPath takes: it knows no mapping but ``dict``."""
    return dict(value) if isinstance(value, Mapping) else value


def _masked_word(match: re.Match[str]) -> str:
    word = match[0]
    if _MASKED.fullmatch(word):
        return word
    if len(word) >= 5:  # noqa: PLR2004 - two characters of four would be half of it
        return f"{word[0]}{_DOTS}{word[-1]}"
    return _head(word)


def _masked_host(host: str) -> str:
    *labels, last = host.split(".")
    if not labels or len(last) > _LONGEST_TOP:
        return _WORD.sub(_masked_word, host)
    return ".".join([*(_masked_label(label) for label in labels), last])


def _masked_label(label: str) -> str:
    return label if _MASKED.fullmatch(label) else _head(label)


def _head(word: str) -> str:
    return f"{word[0] if len(word) >= len(_DOTS) else ''}{_DOTS}"
