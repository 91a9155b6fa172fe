"""A provider's API (the protected resource of RFC 6749): where tokens go, and what requests have.

The one hard idea: what would be refused at every use is found here, with the key that mends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

from daemon.config import request_parts
from daemon.config.hosts import allowed_host, host_of, is_private_host
from daemon.config.names import FOR_API, FOR_REQUEST, Names
from daemon.config.reading import OpenSection
from daemon.config.schema import REQUEST
from daemon.config.testing import test_request
from daemon.config.urls import api_base_url, api_target
from daemon.config.values import boolean
from daemon.domain.allowed_hosts import is_allowed
from daemon.domain.provider import Provider, RequestValues
from daemon.domain.templates import Template, begins_with_origin, host_names, parse_template

_DEFAULT_PORTS = frozenset({80, 443})
# So many combinations of choices are tried out; more tell nothing more.
_MOST_COMBINATIONS = 200
_PRIVATE = (
    "is a private or loopback host, which is refused at every request; write allow_private_hosts: "
    "true beside it, or use a public host"
)


def with_resource(section: OpenSection, provider: Provider, names: Names) -> Provider:
    """Return ``provider`` with its API: base URL, hosts, test request and request values."""
    base = section.optional("api_base_url", api_base_url)
    if base is not None:
        names.check_url(section.at("api_base_url"), base, FOR_API)
    found = replace(
        provider,
        api_base_url=base,
        allowed_hosts=_allowed_hosts(section, base),
        allow_private_hosts=section.get("allow_private_hosts", boolean, default=False),
        test=test_request(section, names),
        request=_request(section.within("request", REQUEST), names),
    )
    _check_base(section, found, names)
    _check_test_url(section, found)
    _check_private(section, found)
    return found


def _allowed_hosts(section: OpenSection, base: Template | None) -> tuple[str, ...]:
    """Return the hosts as configured, else that of the base URL, where it is known already.

    An entry without a port stands for https, and at the host of the base URL for its port, too.
    """
    given = section.each("allowed_hosts", allowed_host)
    target = None if base is None or _chooses_host(base) else api_target(base)
    if target is None:
        return given
    if not given:
        return (target.authority,)
    is_own = target.host in given and target.port not in _DEFAULT_PORTS
    return tuple(dict.fromkeys([*given, *([target.authority] if is_own else [])]))


def _chooses_host(url: Template) -> bool:
    return begins_with_origin(url.text) or bool(host_names(url))


def _check_base(section: OpenSection, provider: Provider, names: Names) -> None:
    """Check ``api_base_url`` against the keys beside it."""
    base, reading, trail = provider.api_base_url, section.reading, section.at("allowed_hosts")
    if base is None:
        return
    if begins_with_origin(base.text):
        if not provider.allowed_hosts:
            message = (
                "is required where api_base_url begins with a value of a reply: a reply must not "
                "choose where the token goes; list the hosts, such as *.example.com"
            )
            reading.find(trail, message)
    elif not _chooses_host(base):
        target = api_target(base)
        if target is not None and not is_allowed(target, provider.allowed_hosts):
            reading.find(trail, "must list the host of api_base_url, too; add it")
    elif provider.allowed_hosts and not all(_covered(provider, names)):
        message = "does not list the host of api_base_url for every choice of its fields"
        reading.warn(trail, message)
    if provider.test and provider.test.path and any(n.startswith("me") for n in base.names):
        message = (
            "cannot be tested below an api_base_url that uses the test's own reply; write url "
            "instead of path"
        )
        reading.find((*section.at("test"), "path"), message)


def _covered(provider: Provider, names: Names) -> Iterator[bool]:
    """Yield for each choice of the fields in the host whether its host is listed."""
    base = provider.api_base_url or Template("")
    chosen = host_names(base)
    known = [names.fields.get(name.removeprefix("fields.")) for name in chosen]
    choices = [each.enum if each else () for each in known]
    for values in islice(product(*choices), _MOST_COMBINATIONS):
        text = base.text
        for name, value in zip(chosen, values, strict=True):
            bare = name.removeprefix("fields.")
            text = text.replace(f"{{{bare}}}", value).replace(f"{{{name}}}", value)
        target = api_target(parse_template(text))
        yield target is None or is_allowed(target, provider.allowed_hosts)


def _check_test_url(section: OpenSection, provider: Provider) -> None:
    test, trail = provider.test, (*section.at("test"), "url")
    if test is None or test.url is None:
        return
    if section.raw("api_base_url") is not None and provider.api_base_url is None:
        return  # That is a finding already.
    if not provider.allowed_hosts and not _same_host(test.url, provider.api_base_url):
        message = "goes to a host that is not that of api_base_url; list it in allowed_hosts"
        section.reading.find(trail, message)
    elif provider.allowed_hosts and not _chooses_host(test.url):
        target = api_target(test.url)
        if target is not None and not is_allowed(target, provider.allowed_hosts):
            section.reading.find(trail, "goes to a host that is not in allowed_hosts; add it there")


def _same_host(one: Template, other: Template | None) -> bool:
    """Tell whether two templates have one host, whatever the values are."""
    return other is not None and _origin(one) == _origin(other)


def _origin(url: Template) -> str:
    scheme, _, rest = url.text.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}".lower()


def _check_private(section: OpenSection, provider: Provider) -> None:
    """Warn of hosts that the check of every address will refuse."""
    if provider.allow_private_hosts:
        return
    urls = {"api_base_url": provider.api_base_url}
    urls |= {"test.url": provider.test.url if provider.test else None}
    private = False
    for key, url in urls.items():
        target = None if url is None else api_target(url)
        if target is not None and is_private_host(target.host):
            section.reading.warn((*section.trail, *key.split(".")), _PRIVATE)
            private = True
    # The default is the host of api_base_url, which is found already.
    if "allowed_hosts" not in section or private:
        return
    if any(is_private_host(host_of(entry).removeprefix("*.")) for entry in provider.allowed_hosts):
        section.reading.warn(section.at("allowed_hosts"), f"has an entry that {_PRIVATE}")


def _request(section: OpenSection, names: Names) -> RequestValues:
    return RequestValues(
        headers=request_parts.headers(section, names, FOR_REQUEST),
        query=request_parts.query(section, names, FOR_REQUEST),
        body=request_parts.members(section, names, FOR_API),
    )
