"""The test request of a provider: what tells whether a token works, and whose it is."""

from __future__ import annotations

from datetime import timedelta

from daemon.config import request_parts
from daemon.config.names import FOR_TEST, FOR_TEST_REQUEST, Names
from daemon.config.parameters import selector
from daemon.config.reading import OpenSection
from daemon.config.schema import TEST
from daemon.config.trail import render
from daemon.config.urls import api_path, api_url
from daemon.config.values import InvalidValueError, duration
from daemon.domain.provider import TestRequest

SHORTEST_INTERVAL = timedelta(minutes=1)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH")
_BODILESS = frozenset({"GET", "HEAD"})


def test_request(top: OpenSection, names: Names) -> TestRequest | None:
    """Return the test request of a provider; ``None`` where it has none."""
    if top.raw("test") is None:
        return None
    section = top.within("test", TEST)
    default = TestRequest()
    interval, is_given = _interval(section)
    test = TestRequest(
        method=section.get("method", _method, default.method),
        path=section.optional("path", api_path),
        url=section.optional("url", api_url),
        headers=request_parts.headers(section, names, FOR_TEST_REQUEST),
        query=request_parts.query(section, names, FOR_TEST_REQUEST),
        body=request_parts.body(section, names, FOR_TEST),
        expect=section.optional("expect", selector),
        interval=interval if is_given else default.interval,
        only_unexpiring=not is_given,
    )
    for key, url in (("path", test.path), ("url", test.url)):
        if url is not None:
            names.check_url(section.at(key), url, FOR_TEST)
    _check_test(top, section, test)
    return test


def _check_test(top: OpenSection, section: OpenSection, test: TestRequest) -> None:
    reading = section.reading
    if (section.raw("path") is None) == (section.raw("url") is None):
        message = "needs exactly one of path (below api_base_url, such as /me) and url"
        reading.find(section.trail, message)
    if section.raw("path") is not None and top.raw("api_base_url") is None:
        message = f"is below api_base_url; set {render(top.at('api_base_url'))}, or write url"
        reading.find(section.at("path"), message)
    if section.raw("body") is None:
        return
    if test.method in _BODILESS:
        message = f"is not sent with {test.method}; remove it, or set method: POST"
        reading.find(section.at("body"), message)
    if request_parts.is_form(test.headers) and not request_parts.is_flat(test.body):
        message = "must be a mapping of names to texts or numbers, since the headers say a form"
        reading.find(section.at("body"), message)


def _method(value: object) -> str:
    if isinstance(value, str) and value in _METHODS:
        return value
    raise InvalidValueError(f"must be one of {', '.join(_METHODS)}")


def _interval(section: OpenSection) -> tuple[timedelta | None, bool]:
    """Return how often to test (``None``: never), and whether the configuration says so."""
    value = section.raw("interval")
    if value is False or value == "off":
        return None, True
    interval = section.optional("interval", _pause)
    return interval, interval is not None


def _pause(value: object) -> timedelta:
    try:
        pause = duration(value)
    except InvalidValueError as error:
        raise InvalidValueError(f"{error}; or off") from None
    if pause < SHORTEST_INTERVAL:
        raise InvalidValueError("must be at least 1m, or off")
    return pause
