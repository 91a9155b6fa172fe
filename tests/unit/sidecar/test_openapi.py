"""The description of the api listener."""

from __future__ import annotations

from openapi_spec_validator import OpenAPIV31SpecValidator

from daemon import __version__
from tests.support.api_routes import api_routes
from tests.support.openapi import api_document, described_routes


def test_it_is_openapi() -> None:
    """The document is valid OpenAPI 3.1 and says which version it describes."""
    OpenAPIV31SpecValidator(api_document()).validate()
    assert api_document()["openapi"].startswith("3.1.")
    assert api_document()["info"]["version"] == __version__


def test_it_describes_what_is_served() -> None:
    """Every route is described, and every described route is served."""
    served = api_routes()
    any_method = {route.removeprefix("ANY ") for route in served if route.startswith("ANY ")}
    described = {
        f"ANY {path}" if path in any_method else f"{method} {path}"
        for method, _, path in (route.partition(" ") for route in described_routes())
    }
    assert described == served


def test_every_operation_says_who_may_do_it() -> None:
    """A permission is named, or that none is needed; and what comes back without a key."""
    for path, operations in api_document()["paths"].items():
        for method, operation in operations.items():
            if method == "parameters":
                continue
            assert "ermission" in operation["description"] or path == "/openapi.json"
            assert {"401", "default"} & set(operation["responses"])
