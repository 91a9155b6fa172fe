"""Templates: where a name may stand, what may stand in for it, and that no value moves a URL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daemon.domain.templates import (
    Template,
    TemplateError,
    full_name,
    host_names,
    is_label,
    look_up,
    parse_template,
    parse_url_template,
    render_label,
    render_text,
    render_url,
    stand_in,
    text_of,
)

REGION = {"fields.region": "eu"}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("region", "fields.region"),
        ("fields.region", "fields.region"),
        ("token.instance_url", "token.instance_url"),
        ("me.accounts[0].id", "me.accounts[0].id"),
        ("me[0].id", "me[0].id"),
        ("callback.realmId", "callback.realmId"),
        ("token", "fields.token"),
        ("method.id", "fields.method.id"),
        ("access_token", "fields.access_token"),
    ],
)
def test_full_name(name: str, full: str) -> None:
    """A name without a root is a field's."""
    assert full_name(name) == full
    assert parse_template(f"a{{{name}}}b").names == (full,)


@pytest.mark.parametrize(
    "text", ["", "a", "{}", "{ region }", '{"a": 1}', "{a b}", "{1}", "{a..b}"]
)
def test_braces_that_are_text(text: str) -> None:
    """In plain text, braces around anything but a name are text."""
    assert parse_template(text) == Template(text)
    assert render_text(parse_template(text), {}) == text


@pytest.mark.parametrize(
    ("text", "names", "in_host"),
    [
        ("https://as.example/token", (), ()),
        ("https://as.example:8443/{region}/token", ("fields.region",), ()),
        ("https://{region}.acme.example/oauth", ("fields.region",), ("fields.region",)),
        (
            "https://api-{region}-{env}.acme.example:8443",
            2 * ("",),
            ("fields.region", "fields.env"),
        ),
        ("https://{region}.x.acme.example?a={env}", 2 * ("",), ("fields.region",)),
        ("https://{a}.{b}.acme.example./", 2 * ("",), ("fields.a", "fields.b")),
        ("https://{me.dc}.api.acme.example/3.0", ("me.dc",), ("me.dc",)),
        ("http://{tenant}.localhost:9000/", ("fields.tenant",), ("fields.tenant",)),
        ("https://as.example/t?tenant={tenant}&x=y{z}", 2 * ("",), ()),
        ("{token.instance_url}", ("token.instance_url",), ()),
        ("{me.accounts[0].base_uri}/v2/{region}?a={env}", 3 * ("",), ()),
        ("{token.url}?a=b", ("token.url",), ()),
        ("/users/{token.user.id}/me?a={callback.b}", 2 * ("",), ()),
        ("/a://{region}/b", ("fields.region",), ()),
    ],
)
def test_url_templates(text: str, names: tuple[str, ...], in_host: tuple[str, ...]) -> None:
    """Labels, path segments, query values and a whole origin of a reply are places for names."""
    template = parse_url_template(text)
    assert len(template.names) == len(names)
    assert host_names(template) == in_host
    assert "{" not in stand_in(template)
    assert render_url(template, dict.fromkeys(template.names, "x") | _origins(template))


def _origins(template: Template) -> dict[str, str]:
    begins = template.text.startswith("{") and not template.names[0].startswith("fields.")
    return {template.names[0]: "https://x.example"} if begins else {}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("https://as.example/{", "has a brace that is not part of a {name}"),
        ("https://as.example/{}", "has a brace"),
        ("https://as.example/{a b}", "has a brace"),
        ("https://as.example/}{", "has a brace"),
        ("{region}://as.example/", "must begin with https://"),
        ("{region}.acme.example/", "must begin with https://"),
        ("acme.example/{region}", "must begin with https://"),
        ("ht{region}://as.example/", "must begin with https://"),
        ("//{region}.acme.example/", "must begin with https://"),
        ("https://{host}/", "last two labels"),
        ("https://{host}.example/", "last two labels"),
        ("https://acme.{tld}/", "last two labels"),
        ("https://{a}.acme.{tld}/", "last two labels"),
        ("https://{a}.acme{b}.example/", "last two labels"),
        ("https://{a}.acme.example{b}/", "last two labels"),
        ("https://{a}.acme.example:{port}/", "in its port"),
        ("https://{a}.acme.example:80{port}/", "in its port"),
        ("https://{a}.acme.example:/", "in its port"),
        ("https://{user}@as.acme.example/", "before an @"),
        ("https://{user}:x@as.acme.example/", "before an @"),
        ("https://x@{a}.acme.example/", "before an @"),
        ("https://{a}.0.0.1/", "last two labels"),
        ("https://{a}.acme.0x1/", "last two labels"),
        ("https://{a}.acme..example/", "last two labels"),
        ("https://{a}\\.acme.example/", "last two labels"),
        ("https://[{a}::1]/", "last two labels"),
        ("https://as.example/?{a}=b", "name of a query parameter"),
        ("https://as.example/?x=y&{a}", "name of a query parameter"),
        ("https://as.example/?x{a}y=z", "name of a query parameter"),
        ("https://as.example/{a}#b", "fragment"),
        ("{token.url}.evil.example/", "must go on with a /"),
        ("{token.url}{region}/", "must go on with a /"),
        ("{token.url}//x", "must go on with a /"),
        ("{token.url}:8080/x", "must go on with a /"),
        ("{token.url}@evil.example/x", "must go on with a /"),
    ],
)
def test_bad_url_templates(text: str, fragment: str) -> None:
    """A name may choose neither scheme, domain, port, user nor parameter."""
    with pytest.raises(TemplateError) as caught:
        parse_url_template(text)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value", "url"),
    [
        ("https://{region}.acme.example/t", "EU-1", "https://eu-1.acme.example/t"),
        ("https://as.example/{region}/t", "a/b c", "https://as.example/a%2Fb%20c/t"),
        ("https://as.example/{region}", "ü?#{x}", "https://as.example/%C3%BC%3F%23%7Bx%7D"),
        ("https://as.example/{region}", "...", "https://as.example/..."),
        ("https://as.example/%2e{region}", "%2e", "https://as.example/%2e%252e"),
        ("https://as.example?a={region}", "b&c=d+e", "https://as.example?a=b%26c%3Dd%2Be"),
        ("https://as.example?a={region}", "..", "https://as.example?a=.."),
        ("/x/{region}?a={region}", "a b", "/x/a%20b?a=a%20b"),
    ],
)
def test_values_are_encoded_for_their_place(text: str, value: str, url: str) -> None:
    """A value is a label in a host, and percent-encoded in path and query."""
    assert render_url(parse_url_template(text), {"fields.region": value}) == url


@pytest.mark.parametrize(
    ("text", "value", "fragment"),
    [
        ("https://{region}.acme.example/", "", "has no value"),
        ("https://{region}.acme.example/", "a.b", "one part of a host name"),
        ("https://{region}.acme.example/", "evil.example/", "one part of a host name"),
        ("https://{region}.acme.example/", "a@b", "one part of a host name"),
        ("https://{region}.acme.example/", "-a", "one part of a host name"),
        ("https://{region}.acme.example/", "a_b", "one part of a host name"),
        ("https://{region}.acme.example/", "ü", "one part of a host name"),
        ("https://{region}.acme.example/", "a" * 64, "one part of a host name"),
        ("https://{region}{region}.acme.example/", "a" * 40, "longer than a host name"),
        ("https://as.example/{region}/", ".", "must not be . or .."),
        ("https://as.example/{region}/", "..", "must not be . or .."),
        ("https://as.example/{region}/", "a\nb", "control characters"),
        ("https://as.example/?a={region}", "a\x00", "control characters"),
        ("https://as.example/?a={region}", "\ud800", "control characters"),
    ],
)
def test_values_that_may_not_stand_there(text: str, value: str, fragment: str) -> None:
    """What cannot stand in its place is refused, and named, and not repeated."""
    with pytest.raises(TemplateError) as caught:
        render_url(parse_url_template(text), {"fields.region": value})
    assert fragment in str(caught.value)
    assert caught.value.name in {"fields.region", None}
    assert len(value) < 3 or value not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://na1.sales.example", "https://na1.sales.example/x"),
        ("https://na1.sales.example/", "https://na1.sales.example/x"),
        ("https://na1.sales.example:8443/a%20b/", "https://na1.sales.example:8443/a%20b/x"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/x"),
    ],
)
def test_whole_origins(value: str, url: str) -> None:
    """A reply's value that begins a URL is its origin, and perhaps the beginning of its path."""
    assert render_url(parse_url_template("{token.url}/x"), {"token.url": value}) == url


@pytest.mark.parametrize(
    "value",
    [
        "na1.sales.example",
        "//na1.sales.example",
        "ftp://na1.sales.example",
        "javascript://na1.sales.example",
        "https://",
        "https:///x",
        "https://a@b.example",
        "https://b.example?x",
        "https://b.example#x",
        "https://b.example\\@c.example",
        "https://b.example\t.c.example",
        "https://b..example",
        "https://-b.example",
        "https://b.example.",
        "https://b.example:/",
        "https://b.example:123456/",
        "https://b.example/../c",
        "https://b.example/%2E%2e",
        "https://b.example/%zz",
        "https://b.example/a b",
        "https://b\u00fccher.example",
        "https://b.example/\u00fc",
        "https://b.example\n",
        "https://" + "a" * 5000,
    ],
)
def test_what_is_no_origin(value: str) -> None:
    """What two readers could read differently is no origin."""
    with pytest.raises(TemplateError) as caught:
        render_url(parse_url_template("{token.url}/x"), {"token.url": value})
    assert caught.value.name == "token.url"


def test_a_value_is_no_template() -> None:
    """Braces in a value are not filled again."""
    values = {"fields.region": "{env}", "fields.env": "secret"}
    assert render_text(parse_template("{region}"), values) == "{env}"
    assert "secret" not in render_url(parse_url_template("/{region}"), values)


_VALUES = st.text() | st.text("ab.-/\\?#@:%&=+{}[]\t\n \u00fc\ud800", max_size=12)
_URLS = st.sampled_from(
    [
        "https://{a}.acme.example/oauth/token",
        "https://x{a}-{b}.eu.acme.example:8443/{c}/token",
        "https://{a}.{b}.acme.example?x={c}&y=1",
        "https://as.example/{a}{b}/x/{c}?q={a}{b}&r=",
        "https://as.example/.{a}./%2e{b}/",
        "http://{a}.localhost:9000/{b}",
        "/{a}/x/{b}?q={c}",
    ]
)


@given(text=_URLS, a=_VALUES, b=_VALUES, c=_VALUES)
def test_no_value_moves_a_url(text: str, a: str, b: str, c: str) -> None:
    """Whatever the values: refused, or the same scheme, port, domain, depth and parameters."""
    template = parse_url_template(text)
    try:
        url = render_url(template, {"fields.a": a, "fields.b": b, "fields.c": c})
    except TemplateError:
        return
    found, wanted = urlsplit(url), urlsplit(stand_in(template))
    assert url.isascii()
    assert url.isprintable()
    assert (found.scheme, found.port) == (wanted.scheme, wanted.port)
    assert (found.username, found.fragment) == (None, "")
    assert _fixed(found.hostname) == _fixed(wanted.hostname)
    assert found.path.count("/") == wanted.path.count("/")
    assert not {".", ".."} & {part.lower().replace("%2e", ".") for part in found.path.split("/")}
    assert _names(found.query) == _names(wanted.query)


def _fixed(host: str | None) -> tuple[int, list[str]]:
    """Return how many labels there are, and those that no value may change."""
    labels = (host or "").split(".")
    return len(labels), labels[-2:] if labels[-1] != "localhost" else labels[-1:]


def _names(query: str) -> list[str]:
    return [name for name, _ in parse_qsl(query, keep_blank_values=True)]


@given(value=st.text(max_size=300) | st.from_regex(r"\Ahttps?://[a-z0-9.:@/?#\\%-]{0,40}\Z"))
def test_an_origin_is_read_alike_by_all(value: str) -> None:
    """What is taken for an origin has a host, no user, and the host stands where it seems to."""
    try:
        url = render_url(parse_url_template("{token.url}/tail"), {"token.url": value})
    except TemplateError:
        return
    parts = urlsplit(url)
    assert parts.scheme in {"http", "https"}
    assert parts.hostname
    assert parts.username is None
    assert parts.path.endswith("/tail")
    assert value.lower().startswith(f"{parts.scheme}://{parts.hostname}")


@given(text=st.text() | st.text("{}abc./:?=&htps@#[0]", max_size=40), value=_VALUES)
def test_templates_are_total(text: str, value: str) -> None:
    """Any text is a template or refused; any value is rendered or refused."""
    template = parse_template(text)
    values = dict.fromkeys(template.names, value)
    render_label(template, values)
    try:
        render_text(template, values)
        render_url(parse_url_template(text), values)
        host_names(template)
    except TemplateError as error:
        assert str(error)  # noqa: PT017 - either end is right


@pytest.mark.parametrize("given", ["fields.access_token", "token.access_token"])
@pytest.mark.parametrize("written", ["{access_token}", "{token.access_token}"])
def test_the_access_token_has_two_names(given: str, written: str) -> None:
    """The token is put in under either of its names, whichever the sender used."""
    assert render_text(parse_template(f"token {written}"), {given: "abc"}) == "token abc"


@pytest.mark.parametrize(
    ("text", "values", "label"),
    [
        ("{me.name} ({me.email})", {"me.name": "Ann", "me.email": "a@b.c"}, "Ann (a@b.c)"),
        ("{me.name} ({me.email})", {"me.name": "Ann"}, "Ann"),
        ("{me.name} ({me.email})", {"me.email": "a@b.c"}, "(a@b.c)"),
        ("{me.name} ({me.email})", {}, None),
        ("{me.name} ({me.email})", {"me.name": "", "me.email": " "}, None),
        ("{me.name} [{me.a} {me.b}] <{me.c}>", {"me.name": "Ann"}, "Ann"),
        ("{me.name} - {me.email}", {"me.name": "Ann"}, "Ann"),
        ("{me.name} / {me.email}", {"me.email": "a"}, "a"),
        ("{me.name} - {me.email}", {"me.name": "-Ann-", "me.email": "x"}, "-Ann- - x"),
        ("{me.name}", {"me.name": "Ann () <x>"}, "Ann () <x>"),
        ("{me.name}", {"me.name": " A\n\tn\x1b[31mn\u202e\u200b "}, "A n[31mn"),
        ("{me.name}", {"me.name": "\ud800\x00"}, None),
        ("{me.name}", {"me.name": "a" * 201}, "a" * 199 + "…"),
        ("{me.name}", {"me.name": "a" * 200}, "a" * 200),
        ("{me.name}", {"me.name": "•••"}, "•••"),
        ("{me.name} {me.email}", {"me.name": "•••", "me.email": ""}, "•••"),
        ("My account", {}, "My account"),
        ("Acme ({region})", REGION, "Acme (eu)"),
    ],
)
def test_labels(text: str, values: Mapping[str, str], label: str | None) -> None:
    """A label is one line that shows what there is."""
    assert render_label(parse_template(text), values) == label


@given(name=st.text(), email=st.text())
def test_a_label_is_one_clean_line(name: str, email: str) -> None:
    """Whatever a provider says, a label can be shown, logged and stored."""
    label = render_label(
        parse_template("{me.name} ({me.email})"), {"me.name": name, "me.email": email}
    )
    assume(label is not None)
    assert label is not None
    assert label.isprintable()
    assert len(label) <= 200
    assert label.encode()


_DOCUMENTS = {
    "me": {"id": 7, "name": "Ann", "sites": [{"url": "https://a"}, {}], "nested": {"is": True}},
    "token": {"x": 1.5, "big": 1e6, "none": None, "empty": "", "a-b": "dash"},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("me.id", "7"),
        ("me.name", "Ann"),
        ("me.sites[0].url", "https://a"),
        ("me.sites[1].url", None),
        ("me.sites[2].url", None),
        ("me.sites.url", None),
        ("me.name[0]", None),
        ("me.name.x", None),
        ("me.nested", None),
        ("me.nested.is", "true"),
        ("me", None),
        ("token.x", "1.5"),
        ("token.big", "1000000"),
        ("token.none", None),
        ("token.empty", None),
        ("token.a-b", "dash"),
        ("callback.x", None),
    ],
)
def test_look_up(name: str, value: str | None) -> None:
    """A name leads through objects and lists to a scalar, or to nothing."""
    assert look_up(name, _DOCUMENTS) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (False, "false"),
        (0, "0"),
        (12345678901234567890, "12345678901234567890"),
        (-1.0, "-1"),
        (1e300, "1e+300"),
        (math.nan, None),
        (math.inf, None),
        (10**100, None),
        ("a\x00b", None),
        ("\udfff", None),
        ("a" * 4096, "a" * 4096),
        ("a" * 4097, None),
        ([], None),
        (b"a", None),
    ],
)
def test_text_of(value: object, text: str | None) -> None:
    """A scalar becomes text that can be stored, and nothing else does."""
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("value", "label"),
    [("eu", True), ("a-1", True), ("1", True), ("", False), ("a.b", False), ("a\n", False)],
)
def test_is_label(value: str, label: bool) -> None:  # noqa: FBT001 - a table's column
    """A label is letters, digits and hyphens within."""
    assert is_label(value) is label
