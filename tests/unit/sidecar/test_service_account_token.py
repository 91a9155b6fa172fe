"""Service account tokens that must be refused, each with its kind of reason, and good ones.

Everything goes through the verification as the listener uses it, with keys at hand.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import RSAKey

from daemon.config.settings import ServiceAccount, Verification
from daemon.domain.errors import Problem
from daemon.sidecar.problems import problem_response
from daemon.sidecar.service_account_token import LEEWAY, Reason, read_token, refused, unavailable
from daemon.sidecar.service_accounts import ServiceAccounts
from tests.support.clock import START, FakeClock
from tests.support.service_account_tokens import (
    ACCOUNT,
    AUDIENCE,
    ISSUER,
    KUBERNETES,
    MemoryCluster,
    Signer,
    claims_of,
    encoded,
)

NOW = START.timestamp()
EC, RSA = Signer.of_curve(), Signer.of_rsa()
STRANGER = Signer.of_curve(EC.key_id)
CLUSTER_ACCOUNTS = frozenset({ACCOUNT, ServiceAccount("ops", "robot")})
GOOD = claims_of(now=NOW)
K8S = GOOD["kubernetes.io"]


def signed(**changes: Any) -> str:
    """Return a token of the cluster with some claims changed; ``None`` takes one away."""
    return EC.sign(claims_of(now=NOW, **changes))


def in_kubernetes(**changes: Any) -> str:
    """Return a token whose Kubernetes claim is changed."""
    found = {**K8S, **changes}
    return signed(**{"kubernetes.io": {k: v for k, v in found.items() if v is not None}})


def with_header(header: object, *, signature: str = "c2lnbmF0dXJl") -> str:
    """Return an unsigned token with a header of one's own."""
    return f"{encoded(orjson.dumps(header))}.{encoded(GOOD)}.{signature}"


def hmac_with_public_key() -> str:
    """Return a token signed by HMAC with the public key as its secret."""
    first = f"{encoded({'alg': 'HS256', 'kid': RSA.key_id})}.{encoded(GOOD)}"
    assert isinstance(RSA.key, RSAKey)
    secret = RSA.key.as_pem(private=False)
    return f"{first}.{encoded(hmac.digest(secret, first.encode(), hashlib.sha256))}"


def mixed() -> str:
    """Return one token's signature under another's claims."""
    head, _, signature = signed().split(".")
    return f"{head}.{encoded(claims_of(ServiceAccount('ops', 'robot'), now=NOW))}.{signature}"


TWICE = b'{"alg":"ES256","kid":"ec-1","alg":"none"}'
BAD: Mapping[str, tuple[str, Reason]] = {
    # How it is signed.
    "alg none, no signature": (with_header({"alg": "none"}, signature=""), Reason.ALGORITHM),
    "alg none with a kid": (
        with_header({"alg": "none", "kid": EC.key_id}, signature=""),
        Reason.ALGORITHM,
    ),
    "alg None": (with_header({"alg": "None", "kid": EC.key_id}), Reason.ALGORITHM),
    "alg null": (with_header({"alg": None, "kid": EC.key_id}), Reason.ALGORITHM),
    "alg a list": (with_header({"alg": ["ES256"], "kid": EC.key_id}), Reason.ALGORITHM),
    "no alg": (with_header({"kid": EC.key_id}), Reason.MALFORMED),
    "HS256 with the public key": (hmac_with_public_key(), Reason.ALGORITHM),
    "HS256 with an empty key": (with_header({"alg": "HS256", "kid": "ec-1"}), Reason.ALGORITHM),
    "PS256": (with_header({"alg": "PS256", "kid": RSA.key_id}), Reason.ALGORITHM),
    "EdDSA": (with_header({"alg": "EdDSA", "kid": EC.key_id}), Reason.ALGORITHM),
    "another curve's algorithm": (EC.sign(GOOD, alg="ES384"), Reason.ALGORITHM),
    "RS256 with a curve's key": (EC.sign(GOOD, alg="RS256"), Reason.ALGORITHM),
    "a curve's algorithm with an RSA key": (RSA.sign(GOOD, alg="ES256"), Reason.ALGORITHM),
    "a stranger's signature": (STRANGER.sign(GOOD), Reason.SIGNATURE),
    "another token's signature": (mixed(), Reason.SIGNATURE),
    "no signature": (signed().rpartition(".")[0] + ".", Reason.SIGNATURE),
    "half a signature": (signed()[:-43], Reason.SIGNATURE),
    "a signature of zeros": (
        signed().rpartition(".")[0] + "." + encoded(bytes(64)),
        Reason.SIGNATURE,
    ),
    # Which key.
    "kid unknown": (EC.sign(GOOD, kid="another"), Reason.UNKNOWN_KEY),
    "no kid": (EC.sign(GOOD, kid=None), Reason.UNKNOWN_KEY),
    "kid empty": (EC.sign(GOOD, kid=""), Reason.UNKNOWN_KEY),
    "kid a path": (EC.sign(GOOD, kid="../../dev/null"), Reason.UNKNOWN_KEY),
    "kid of 300 characters": (EC.sign(GOOD, kid="k" * 300), Reason.UNKNOWN_KEY),
    "kid a number": (with_header({"alg": "ES256", "kid": 1}), Reason.UNKNOWN_KEY),
    "own key in the header": (
        STRANGER.sign(GOOD, jwk=STRANGER.public()),
        Reason.SIGNATURE,
    ),
    "own key's URL in the header": (
        STRANGER.sign(GOOD, jku="https://evil.example/keys"),
        Reason.SIGNATURE,
    ),
    "own certificate's URL": (STRANGER.sign(GOOD, x5u="https://evil.example/c"), Reason.SIGNATURE),
    "own certificate": (STRANGER.sign(GOOD, x5c=["MIIB"]), Reason.SIGNATURE),
    "crit": (EC.sign(GOOD, crit=["exp"], exp=1), Reason.MALFORMED),
    "crit empty": (EC.sign(GOOD, crit=[]), Reason.MALFORMED),
    "payload not encoded": (EC.sign(GOOD, b64=False, crit=["b64"]), Reason.MALFORMED),
    "b64 without crit": (EC.sign(GOOD, b64=False), Reason.MALFORMED),
    # Whose, for whom, when.
    "another issuer": (signed(iss="https://evil.example"), Reason.ISSUER),
    "issuer with a slash more": (signed(iss=f"{ISSUER}/"), Reason.ISSUER),
    "issuer in capitals": (signed(iss=ISSUER.upper()), Reason.ISSUER),
    "no issuer": (signed(iss=None), Reason.CLAIMS),
    "issuer a list": (signed(iss=[ISSUER]), Reason.CLAIMS),
    "the API server's audience": (signed(aud=[ISSUER]), Reason.AUDIENCE),
    "audience with a character more": (signed(aud=[f"{AUDIENCE}2"]), Reason.AUDIENCE),
    "audience as part of a text": (signed(aud=f"not {AUDIENCE}"), Reason.AUDIENCE),
    "audience in capitals": (signed(aud=AUDIENCE.upper()), Reason.AUDIENCE),
    "no audience": (signed(aud=None), Reason.AUDIENCE),
    "audience an empty list": (signed(aud=[]), Reason.AUDIENCE),
    "audience an empty text": (signed(aud=""), Reason.AUDIENCE),
    "audience of numbers": (signed(aud=[1]), Reason.CLAIMS),
    "audience an object": (signed(aud={AUDIENCE: True}), Reason.CLAIMS),
    "audience nested": (signed(aud=[[AUDIENCE]]), Reason.CLAIMS),
    "audience beside a number": (signed(aud=[AUDIENCE, 1]), Reason.CLAIMS),
    "expired": (signed(exp=NOW - LEEWAY), Reason.EXPIRED),
    "expired long ago": (signed(exp=1), Reason.EXPIRED),
    "no exp": (signed(exp=None), Reason.CLAIMS),
    "exp a text": (signed(exp=str(NOW + 60)), Reason.CLAIMS),
    "exp true": (signed(exp=True), Reason.CLAIMS),
    "exp negative": (signed(exp=-1), Reason.CLAIMS),
    "exp beyond all dates": (signed(exp=1e300), Reason.CLAIMS),
    "exp an object": (signed(exp={}), Reason.CLAIMS),
    "nbf in the future": (signed(nbf=NOW + LEEWAY + 1), Reason.NOT_YET_VALID),
    "nbf a text": (signed(nbf="0"), Reason.CLAIMS),
    "issued in the future": (signed(iat=NOW + LEEWAY + 1), Reason.NOT_YET_VALID),
    "no iat": (signed(iat=None), Reason.CLAIMS),
    # Which account.
    "the same name in another namespace": (
        EC.sign(claims_of(ServiceAccount("stolen", "billing"), now=NOW)),
        Reason.UNKNOWN_ACCOUNT,
    ),
    "another name in the same namespace": (
        EC.sign(claims_of(ServiceAccount("payments", "reports"), now=NOW)),
        Reason.UNKNOWN_ACCOUNT,
    ),
    "name in capitals": (
        EC.sign(claims_of(ServiceAccount("payments", "Billing"), now=NOW)),
        Reason.UNKNOWN_ACCOUNT,
    ),
    "a colon moved": (
        EC.sign(claims_of(ServiceAccount("payments:billing", "x"), now=NOW)),
        Reason.UNKNOWN_ACCOUNT,
    ),
    "sub of another account": (signed(sub="system:serviceaccount:ops:robot"), Reason.CLAIMS),
    "sub of a user": (signed(sub="payments:billing"), Reason.CLAIMS),
    "no sub": (signed(sub=None), Reason.CLAIMS),
    "no Kubernetes claim": (signed(**{"kubernetes.io": None}), Reason.CLAIMS),
    "Kubernetes claim a text": (signed(**{"kubernetes.io": "payments"}), Reason.CLAIMS),
    "no namespace": (in_kubernetes(namespace=None), Reason.CLAIMS),
    "namespace empty": (in_kubernetes(namespace=""), Reason.CLAIMS),
    "namespace a list": (in_kubernetes(namespace=["payments"]), Reason.CLAIMS),
    "no service account": (in_kubernetes(serviceaccount=None), Reason.CLAIMS),
    "service account a text": (in_kubernetes(serviceaccount="billing"), Reason.CLAIMS),
    "service account without name": (in_kubernetes(serviceaccount={"uid": "x"}), Reason.CLAIMS),
    "pod without name": (in_kubernetes(pod={}), Reason.CLAIMS),
    # No token at all, though it begins like one.
    "two parts": ("eyJhbGciOiJFUzI1NiJ9.e30.", Reason.UNKNOWN_KEY),
    "header no JSON": (f"eyJhbGciOi.{encoded(GOOD)}.c2ln", Reason.MALFORMED),
    "header not base64": (f"eyJhb.{encoded(GOOD)}.c2ln", Reason.MALFORMED),
    "header of 2,000 characters": (EC.sign(GOOD, typ="J" * 2000), Reason.MALFORMED),
    "header with a name twice": (
        ".".join((encoded(TWICE), encoded(GOOD), "")),
        Reason.ALGORITHM,
    ),
    "payload no JSON": (EC.sign(b"{"), Reason.MALFORMED),
    "payload empty": (EC.sign(b""), Reason.MALFORMED),
    "payload a list": (EC.sign(b"[]"), Reason.MALFORMED),
    "payload a text": (EC.sign(b'"eyJ"'), Reason.MALFORMED),
    "payload not UTF-8": (EC.sign(b'{"iss":"\xff"}'), Reason.MALFORMED),
    "payload with NaN": (EC.sign(b'{"exp":NaN}'), Reason.MALFORMED),
    "payload nested deeply": (EC.sign(b'{"a":' * 900 + b"1" + b"}" * 900), Reason.CLAIMS),
    "payload nested beyond reason": (EC.sign(b"[" * 5000), Reason.MALFORMED),
    "payload an endless number": (EC.sign(b'{"exp":' + b"9" * 5000 + b"}"), Reason.MALFORMED),
    "huge": (signed(padding="x" * 8192), Reason.MALFORMED),
    "very huge": ("eyJ" + "x" * 1_000_000 + ".e30.c2ln", Reason.MALFORMED),
}
GOOD_ONES = {
    "ES256": signed(),
    "RS256": RSA.sign(GOOD),
    "audience a text": signed(aud=AUDIENCE),
    "audience among others": signed(aud=["vault", AUDIENCE]),
    "a header more": EC.sign(GOOD, typ="JWT", jku="https://evil.example/keys"),
    "no nbf": signed(nbf=None),
    "exp a moment ago": signed(exp=NOW - LEEWAY + 1),
    "times as fractions": signed(exp=NOW + 60.5, iat=NOW - 0.5),
    "nbf within the leeway": signed(nbf=NOW + LEEWAY),
    "no pod": in_kubernetes(pod=None),
    "a claim that we do not know": signed(extra={"deep": [1, 2]}),
}


def accounts(
    *signers: Signer, verification: Verification = Verification.JWKS
) -> tuple[ServiceAccounts, MemoryCluster]:
    """Return the verification with a cluster that has these keys, or the usual ones."""
    cluster = MemoryCluster(*(signers or (EC, RSA)))
    kubernetes = replace(KUBERNETES, verification=verification)
    return ServiceAccounts(lambda: kubernetes, cluster=cluster, clock=FakeClock()), cluster


async def asked(found: ServiceAccounts, token: str) -> ServiceAccount | None:
    """Have a token verified."""
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
    return await found.verify(token, digest, CLUSTER_ACCOUNTS.__contains__)


async def refusal(token: str, **how: Verification) -> tuple[Problem, MemoryCluster]:
    """Return how a token is refused."""
    found, cluster = accounts(**how)
    async with found:
        with pytest.raises(Problem) as caught:
            await asked(found, token)
        digest = hashlib.sha256(token.encode()).digest()
        assert found.remembered(digest) is None
    return caught.value, cluster


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused(name: str) -> None:
    """It is a 401 that tells the kind of reason, in member and challenge, and echoes nothing."""
    token, reason = BAD[name]
    problem, _ = await refusal(token)
    assert (problem.status, problem.code) == (401, "unauthenticated")
    assert problem.members == {"reason": reason.value}
    challenge = problem.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="tokenward", error="invalid_token", error_desc')
    shown = problem.detail + challenge
    assert not [part for part in token.split(".") if len(part) > 3 and part in shown]
    assert "evil" not in shown


# Only the signature can tell these; the API server is asked for that.
_UNSIGNED = {Reason.SIGNATURE, Reason.UNKNOWN_KEY, Reason.ALGORITHM}


@pytest.mark.parametrize("name", [name for name in BAD if BAD[name][1] not in _UNSIGNED])
async def test_the_api_server_is_not_bothered(name: str) -> None:
    """A token that could not be a caller's is refused alike without a question to anybody."""
    token, reason = BAD[name]
    problem, cluster = await refusal(token, verification=Verification.TOKEN_REVIEW)
    assert problem.members == {"reason": reason.value}
    assert (cluster.reviewed, cluster.fetched) == ([], 0)


@pytest.mark.parametrize("name", GOOD_ONES)
async def test_a_good_token_is_its_account_s(name: str) -> None:
    """What is signed by the cluster, for us, now, says whose it is."""
    found, _ = accounts()
    async with found:
        assert await asked(found, GOOD_ONES[name]) == ACCOUNT


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
async def test_every_curve_has_its_algorithm(curve: str) -> None:
    """The curves of API servers are known, each with the algorithm that belongs to it."""
    signer = Signer.of_curve("a", curve)
    found, _ = accounts(signer)
    async with found:
        assert await asked(found, signer.sign(GOOD)) == ACCOUNT


@pytest.mark.parametrize(
    "text", ["", "tw_key", "a.b.c", "Bearer x", "eyJ", "eyJ.x", "eyJ.ü.x", "eyJ.e30.e30="]
)
async def test_what_is_no_jwt_is_left_to_the_keys(text: str) -> None:
    """A caller key is not taken for a token."""
    found, cluster = accounts()
    async with found:
        assert await asked(found, text) is None
    assert cluster.fetched == 0


def test_what_a_token_says_is_read_whole() -> None:
    """Pod and uid are there for the log; nothing of the token is in its printed form."""
    presented = read_token(GOOD_ONES["ES256"])
    assert presented.claims.pod == K8S["pod"]["name"]
    assert presented.claims.pod_uid == K8S["pod"]["uid"]
    assert presented.claims.audiences == (AUDIENCE,)
    assert encoded(GOOD)[:20] not in repr(presented)


@pytest.mark.parametrize("reason", Reason)
def test_answers_can_be_sent(reason: Reason) -> None:
    """The description stands in a header as RFC 6750 3 has it: ASCII without quotes."""
    response = problem_response(refused(reason))
    description = response.headers["WWW-Authenticate"].split('error_description="')[1]
    assert description.endswith('"')
    assert description[:-1].isascii()
    assert not set('"\\') & set(description[:-1])


def test_nobody_s_fault_is_a_503() -> None:
    """What cannot be found out is no 401, and says when to come again."""
    response = problem_response(unavailable())
    assert (response.status, response.headers["Retry-After"]) == (503, "5")


_PARTS = st.text("eyJhbGciOiJFUzI1NiJ9-_.= {}\x00é", max_size=60)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=8,
)


def _object(draw: Callable[[st.SearchStrategy[Any]], Any], names: list[str]) -> dict[str, Any]:
    return {name: draw(_JSON) for name in names if draw(st.booleans())}


@st.composite
def _shaped(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """Return a token whose parts are JSON, with members of the right names."""
    header = {"alg": "ES256", "kid": "ec-1"} | _object(draw, ["alg", "kid", "crit", "b64", "x5c"])
    claims = GOOD | _object(draw, [*GOOD])
    parts = (_plain(header), _plain(claims), draw(st.binary(max_size=70)))
    return ".".join(map(encoded, parts))


def _plain(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return b"{}"


@settings(deadline=None)
@given(st.lists(_PARTS, max_size=4).map(".".join) | _shaped() | st.text(max_size=200))
async def test_junk_of_any_shape(token: str) -> None:
    """Whatever is sent is refused or no token at all: nothing else is raised, nobody is asked."""
    for verification in Verification:
        found, cluster = accounts(EC, verification=verification)
        cluster.status = {"authenticated": False}
        async with found:
            try:
                assert await asked(found, token) is None
            except Problem as problem:
                assert problem.status == 401  # noqa: PT017 - either end is right
        assert cluster.reviewed == [] or verification is Verification.TOKEN_REVIEW


def test_a_key_of_the_token_s_own_is_not_looked_at() -> None:
    """A broken key in the header changes nothing: it is never imported."""
    broken = {"kty": "EC", "crv": "P-256", "x": "!", "y": "?"}
    assert read_token(EC.sign(GOOD, jwk=broken)).key_id == EC.key_id
