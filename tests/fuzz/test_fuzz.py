"""Every reader of foreign bytes, with the corpora, what was found before, and mutations of both."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

# Enough to notice a slip; `make fuzz` looks for the rest.
EXAMPLES = 60

_targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@st.composite
def _mutated(draw: st.DrawFn, target: Target, seeds: list[bytes]) -> bytes:
    """Return an input with a few bytes replaced, removed, doubled, or exchanged for words."""
    data = draw(st.sampled_from(seeds)) if seeds else b""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        words = st.sampled_from(target.words) if target.words else st.nothing()
        piece = draw(st.binary(max_size=4) | words | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


@_targets
def test_what_is_known_is_read(target: Target) -> None:
    """Neither the corpora nor what fuzzing has found breaks a reader."""
    for data in target.seeds():
        target.run(data)


@_targets
def test_mutations_break_nothing(target: Target) -> None:
    """Whatever bytes come, a reader answers with a value of its closed set."""
    seeds = target.seeds()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.one_of(_mutated(target, seeds), st.binary(max_size=200)))
    def broken(data: bytes) -> None:
        target.run(data)

    broken()
