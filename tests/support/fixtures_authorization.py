"""Fixtures for real authorization servers; a pytest plugin (``pytest_plugins``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.django_toolkit.provider import DjangoToolkit
from tests.support.oidc_provider import OidcProvider


@pytest.fixture
def oidc_provider() -> Iterator[OidcProvider]:
    """A strict oidc-provider with access tokens of 5 s."""
    with OidcProvider() as provider:
        yield provider


@pytest.fixture
def start_oidc_provider() -> Iterator[Callable[..., OidcProvider]]:
    """Start oidc-providers with the arguments of :class:`OidcProvider`; all end with the test."""
    with ExitStack() as running:
        yield lambda **behaviour: running.enter_context(OidcProvider(**behaviour))


@pytest.fixture
def start_django_toolkit() -> Iterator[Callable[..., DjangoToolkit]]:
    """Start django-oauth-toolkits with the arguments of :class:`DjangoToolkit`."""
    with ExitStack() as running:
        yield lambda **behaviour: running.enter_context(DjangoToolkit(**behaviour))
