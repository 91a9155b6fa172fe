"""How many token requests a provider may get now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.domain.admission import (
    BARE_REFUSALS_THAT_OPEN,
    BURST,
    FAILURES_THAT_OPEN,
    PROBE_INTERVAL,
    RESERVE_AHEAD,
    ProviderState,
    admit,
    admitted,
    after_outcome,
    again_in,
)
from daemon.domain.outcome import Granted, Outcome, OutcomeKind
from tests.support.clock import START

FRESH = ProviderState(provider="acme", free_at=START)
PAUSED = replace(FRESH, paused_until=START + timedelta(hours=1))
OPEN = replace(FRESH, circuit="unavailable", failures=5)
INVALID_CLIENT = Outcome(kind=OutcomeKind.MISCONFIGURED, error="invalid_client")
OK = Outcome(kind=OutcomeKind.OK, granted=Granted(access_token="a"))


def seconds(number: float) -> timedelta:
    """Return a duration."""
    return timedelta(seconds=number)


@pytest.mark.parametrize(
    ("idle", "rate", "wanted", "granted"),
    [
        (0, 10, 1, 1),
        (0, 10, 100, 2),  # the slots within the reserve
        (1, 10, 100, 12),  # ten saved up, two within the reserve
        (3600, 10, 100, 12),  # no more than ten are ever saved up
        (0, 1, 100, 0),
        (3600, 1, 100, 10),
        (3600, 0.001, 100, 3),
        (86400 * 365, 0.001, 100, 10),
        (3600, 200, 1000, 55),  # at a high rate fewer are saved up: some arrive together
        (3600, 1000, 1000, 251),
        (3600, 10, 0, 0),
        (3600, 10, -1, 0),
        (3600, 10, 5, 5),
    ],
)
def test_slots(idle: float, rate: float, wanted: int, granted: int) -> None:
    """As many are admitted as slots have come up, ten at most saved, and a short reserve."""
    admission = admit(FRESH, rate=rate, wanted=wanted, now=START + seconds(idle))
    assert len(admission.delays) == granted
    assert all(0 <= delay <= RESERVE_AHEAD.total_seconds() for delay in admission.delays)
    if wanted > 0:
        assert (admission.retry_at is None) == (granted > 0)


@pytest.mark.parametrize("rate", [1e-300, 1e-9, 1e9, 1e300])
def test_absurd_rates(rate: float) -> None:
    """A rate that nobody means neither divides by zero nor leaves the calendar."""
    admission = admit(FRESH, rate=rate, wanted=3, now=START + timedelta(days=30))
    assert len(admission.delays) == 3


def test_retry_at_is_when_one_is_admitted() -> None:
    """Asking again at ``retry_at`` succeeds, and a moment before it does not."""
    state = admit(FRESH, rate=3, wanted=100, now=START + seconds(60)).state
    refused = admit(state, rate=3, wanted=1, now=START + seconds(60))
    assert refused.retry_at is not None
    just_before = admit(state, rate=3, wanted=1, now=refused.retry_at - timedelta(microseconds=9))
    assert just_before.delays == ()
    assert len(admit(state, rate=3, wanted=1, now=refused.retry_at).delays) == 1


def test_sustained_rate() -> None:
    """Who always wants more gets the rate in the long run, beside what was saved up."""
    state, sent = FRESH, 0
    for step in range(6000):
        admission = admit(state, rate=7, wanted=50, now=START + seconds(step / 100))
        state, sent = admission.state, sent + len(admission.delays)
    assert 7 * 60 - 1 <= sent <= 7 * 60 + BURST


def test_fewer_claims_than_admitted_keep_their_slots() -> None:
    """What was admitted but not claimed can be claimed later."""
    now = START + seconds(60)
    state = admitted(FRESH, 3, rate=10, now=now)
    assert len(admit(state, rate=10, wanted=100, now=now).delays) == 9


def test_a_pause_stops_all_but_a_person() -> None:
    """Until a pause ends nothing is admitted, except what a person forces."""
    now = START + seconds(60)
    refused = admit(PAUSED, rate=10, wanted=5, now=now)
    assert refused.delays == ()
    assert refused.retry_at == PAUSED.paused_until
    assert refused.state == PAUSED
    assert len(admit(PAUSED, rate=10, wanted=1, now=now, forced=True).delays) == 1
    assert len(admit(PAUSED, rate=10, wanted=5, now=START + timedelta(hours=1)).delays) == 5


def test_a_person_does_not_pass_the_rate() -> None:
    """A forced request waits for the rate like any other."""
    now = START + seconds(60)
    state = admit(FRESH, rate=1, wanted=100, now=now).state
    assert admit(state, rate=1, wanted=1, now=now, forced=True).delays == ()


def test_an_open_circuit_admits_one_probe_in_thirty_seconds() -> None:
    """While a circuit is open one request is sent each 30 s, however many are wanted."""
    state, probes = OPEN, []
    for second in range(100):
        now = START + seconds(60 + second)
        admission = admit(state, rate=10, wanted=8, now=now)
        state = admission.state
        probes += [second] * len(admission.delays)
    assert probes == [0, 30, 60, 90]


def test_nothing_shortens_a_pause() -> None:
    """Neither a forced probe nor an opening circuit brings the end of a longer pause nearer."""
    now = START + seconds(60)
    both = replace(OPEN, paused_until=PAUSED.paused_until)
    forced = admit(both, rate=10, wanted=1, now=now, forced=True)
    assert forced.state.paused_until == PAUSED.paused_until
    opened = after_outcome(PAUSED, INVALID_CLIENT, now)
    assert opened.circuit == "misconfigured"
    assert opened.paused_until == PAUSED.paused_until


@pytest.mark.parametrize("kind", [OutcomeKind.OK, OutcomeKind.REAUTHORIZE])
def test_an_answer_closes_the_circuit(kind: OutcomeKind) -> None:
    """A request that the provider decided on ends circuit and probing."""
    probing = replace(OPEN, paused_until=START + PROBE_INTERVAL)
    assert after_outcome(probing, replace(OK, kind=kind), START) == FRESH


def test_an_answer_does_not_end_another_requests_pause() -> None:
    """A success that was on its way while another was told to wait does not end that wait."""
    assert after_outcome(PAUSED, OK, START).paused_until == PAUSED.paused_until


@pytest.mark.parametrize("kind", [OutcomeKind.NOT_SENT, OutcomeKind.IN_DOUBT])
def test_failures_in_a_row_open_the_circuit(kind: OutcomeKind) -> None:
    """So many failures in a row open the circuit, and not one sooner."""
    state = FRESH
    for number in range(1, FAILURES_THAT_OPEN + 1):
        state = after_outcome(state, Outcome(kind=kind), START)
        assert state.failures == number
        assert (state.circuit is not None) == (number == FAILURES_THAT_OPEN)
    assert state.paused_until == START + PROBE_INTERVAL


def test_a_misconfigured_client_opens_the_circuit_at_once() -> None:
    """Our own mistake is not repeated for each connection."""
    state = after_outcome(FRESH, INVALID_CLIENT, START)
    assert state.circuit == "misconfigured"
    assert state.paused_until == START + PROBE_INTERVAL


def test_a_bare_refusal_opens_the_circuit_when_it_repeats() -> None:
    """A 401 or 404 without an OAuth error may be a gateway's: it takes several in a row."""
    state = FRESH
    for number in range(1, BARE_REFUSALS_THAT_OPEN + 1):
        state = after_outcome(state, Outcome(kind=OutcomeKind.MISCONFIGURED), START)
        assert (state.circuit is not None) == (number == BARE_REFUSALS_THAT_OPEN)


def test_retry_after_pauses_the_provider() -> None:
    """``Retry-After`` holds for all connections of the provider, and a shorter one later on."""
    told = Outcome(kind=OutcomeKind.REFUSED, retry_after=120.0)
    state = after_outcome(FRESH, told, START)
    assert state == replace(FRESH, paused_until=START + seconds(120))
    shorter = after_outcome(state, replace(told, retry_after=5.0), START)
    assert shorter.paused_until == START + seconds(120)
    assert after_outcome(FRESH, Outcome(kind=OutcomeKind.REFUSED), START) == FRESH


@pytest.mark.parametrize(("circuit", "closes"), [("unavailable", True), ("misconfigured", False)])
def test_a_well_formed_refusal_shows_that_the_provider_is_there(
    *, circuit: str, closes: bool
) -> None:
    """It ends an outage, but says nothing about a client that is refused."""
    state = replace(OPEN, circuit=circuit, paused_until=START + PROBE_INTERVAL)
    after = after_outcome(state, Outcome(kind=OutcomeKind.REFUSED, retry_after=90.0), START)
    assert (after.circuit is None) == closes
    assert after.paused_until == START + seconds(90)


def test_again_in() -> None:
    """A sweep that the rate or a pause has limited learns when to come again."""
    now = START + seconds(60)

    def asked(state: ProviderState, taken: int) -> float | None:
        return again_in(state, places=8, taken=taken, rate=10, now=now)

    assert asked(PAUSED, 0) == 3540
    assert asked(FRESH, 0) is None
    assert asked(FRESH, 8) is None
    assert asked(FRESH, 3) == pytest.approx(0.125)
    used_up = admit(FRESH, rate=10, wanted=100, now=now).state
    assert asked(used_up, 8) == pytest.approx(0.05)


@dataclass(frozen=True)
class Ask:
    """One call: after a wait, for so many, of which so many are claimed."""

    wait: float
    wanted: int
    share: float
    forced: bool


ASKS = st.lists(
    st.builds(
        Ask,
        wait=st.one_of(
            st.just(0.0),
            st.floats(min_value=0, max_value=0.3),
            st.floats(min_value=0, max_value=60),
        ),
        wanted=st.integers(min_value=0, max_value=80),
        share=st.sampled_from([0.0, 0.3, 1.0, 1.0]),
        forced=st.booleans(),
    ),
    max_size=60,
)


@given(rate=st.floats(min_value=0.05, max_value=200), asks=ASKS)
def test_any_second_sees_at_most_ten_more_than_the_rate(rate: float, asks: list[Ask]) -> None:
    """Whatever is asked whenever, each window of one second has at most rate + 10 sends."""
    state, now, sends = FRESH, START, list[float]()
    for ask in asks:
        now += seconds(ask.wait)
        admission = admit(state, rate=rate, wanted=ask.wanted, now=now, forced=ask.forced)
        count = int(len(admission.delays) * ask.share)
        state = admitted(state, count, rate=rate, now=now)
        if ask.share == 1.0 and count:
            assert state == admission.state
        offset = (now - START).total_seconds()
        sends += [offset + delay for delay in admission.delays[:count]]
    sends.sort()
    first = 0
    for last, moment in enumerate(sends):
        while sends[first] <= moment - 1.0 + 1e-4:
            first += 1
        assert last - first + 1 <= rate + BURST


@given(asks=ASKS, rate=st.floats(min_value=0.5, max_value=200), kinds=st.lists(st.booleans()))
def test_an_open_circuit_never_sees_two_probes_within_thirty_seconds(
    asks: list[Ask], rate: float, kinds: list[bool]
) -> None:
    """However the asking goes and the probes fail, unforced probes are 30 s apart."""
    state, now, probes = OPEN, START, list[float]()
    answers = iter(kinds)
    for ask in asks:
        now += seconds(ask.wait)
        admission = admit(state, rate=rate, wanted=ask.wanted, now=now)
        state = admission.state
        probes += [(now - START).total_seconds()] * len(admission.delays)
        if admission.delays:
            kind = OutcomeKind.IN_DOUBT if next(answers, True) else OutcomeKind.NOT_SENT
            state = after_outcome(state, Outcome(kind=kind), now)
    gaps = [later - sooner for sooner, later in pairwise(probes)]
    assert all(gap >= PROBE_INTERVAL.total_seconds() for gap in gaps)
