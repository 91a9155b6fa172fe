"""The cluster and the callers that come from it: what is accepted, refused and applied."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.config.document import read_document
from daemon.config.reload import changes
from daemon.config.settings import Kubernetes, Permission, ServiceAccount, Verification
from tests.support.configuration import Desk

ISSUER = "https://kubernetes.default.svc.cluster.local"
CLUSTER = f"kubernetes: {{audience: tokenward, issuer: {ISSUER}"
CALLER = "{name: a, service_account: {namespace: payments, name: billing.v2}, connections: ['*']"
CALLERS = f"callers: [{CALLER}, permissions: [token]}}]"
_EXAMPLE = Path(__file__).parents[3] / "config.example.yaml"


def test_a_service_account_is_a_caller(desk: Desk) -> None:
    """A caller may be known by its pods' service account instead of a key."""
    settings = desk.load(f"{CALLERS}\n{CLUSTER}}}")
    (caller,) = settings.callers
    assert caller.service_account == ServiceAccount("payments", "billing.v2")
    assert (caller.key_sha256, caller.key_file) == (b"", None)
    assert caller.permissions == {Permission.TOKEN}
    assert settings.kubernetes == Kubernetes(audience="tokenward", issuer=ISSUER)
    assert settings.warnings == ()


def test_the_example_states_the_defaults(desk: Desk) -> None:
    """What has a default is shown with it."""
    example = read_document(_EXAMPLE)
    assert isinstance(example, dict)
    shown = {name: value for name, value in example["kubernetes"].items() if value is not None}
    assert shown.pop("audience") == "tokenward"
    assert shown.pop("issuer") == ISSUER
    default = Kubernetes(audience="")
    assert shown == {name: str(getattr(default, name)) for name in shown}
    assert {"verification", "api_server", "ca_file", "token_file"} == set(shown)
    assert desk.load("kubernetes: null").kubernetes is None


def test_every_key_arrives(desk: Desk) -> None:
    """Files are found beside the configuration; keys elsewhere come with public authorities."""
    files = "jwks_file: keys.json, ca_file: ca.crt, token_file: token"
    inside = f"{files}, api_server: 'https://10.0.0.1:6443/'"
    found = desk.load(f"{CALLERS}\n{CLUSTER}, {inside}}}").kubernetes
    assert found == Kubernetes(
        audience="tokenward",
        issuer=ISSUER,
        api_server="https://10.0.0.1:6443",
        jwks_file=desk.directory / "keys.json",
        ca_file=desk.directory / "ca.crt",
        token_file=desk.directory / "token",
    )
    elsewhere = "jwks_url: 'https://oidc.example/id/keys'"
    found = desk.load(f"{CALLERS}\n{CLUSTER}, {elsewhere}}}").kubernetes
    assert found == Kubernetes(
        audience="tokenward", issuer=ISSUER, jwks_url="https://oidc.example/id/keys", ca_file=None
    )
    found = desk.load(f"{CALLERS}\n{CLUSTER}, {elsewhere}, ca_file: /ca}}").kubernetes
    assert found is not None
    assert found.ca_file == Path("/ca")


def test_a_review_needs_no_issuer(desk: Desk) -> None:
    """The API server knows its issuer."""
    text = f"{CALLERS}\nkubernetes: {{audience: tokenward, verification: token_review}}"
    found = desk.load(text).kubernetes
    assert found == Kubernetes(audience="tokenward", verification=Verification.TOKEN_REVIEW)


def test_a_cluster_that_nobody_comes_from(desk: Desk) -> None:
    """It gives a warning, not an error: the callers may come with the next reload."""
    assert desk.load(f"{CLUSTER}}}").warnings == (
        "kubernetes: has no effect: no caller has a service_account",
    )


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (CALLERS, "callers[0].service_account", "needs the section kubernetes"),
        (f"{CALLERS}\nkubernetes: {{}}", "kubernetes.audience", "is missing"),
        (f"{CALLERS}\nkubernetes: {{audience: t}}", "kubernetes.issuer", "is missing"),
        (f"{CALLERS}\nkubernetes: [t]", "kubernetes", "must be a mapping"),
        (f"{CALLERS}\n{CLUSTER}, audiense: t}}", "kubernetes.audiense", "did you mean audience?"),
        (f"{CALLERS}\nkubernetes: {{audience: a b}}", "kubernetes.audience", "without spaces"),
        (f"{CALLERS}\nkubernetes: {{audience: ''}}", "kubernetes.audience", "must not be empty"),
        (
            f"{CALLERS}\nkubernetes: {{audience: '{ISSUER}', issuer: '{ISSUER}'}}",
            "kubernetes.audience",
            "a name of its own",
        ),
        (
            f"{CALLERS}\nkubernetes: {{audience: 'https://kubernetes.default.svc', issuer: i}}",
            "kubernetes.audience",
            "a name of its own",
        ),
        (f"{CALLERS}\n{CLUSTER}, verification: no}}", "kubernetes.verification", "must be one of"),
        (f"{CALLERS}\n{CLUSTER}, api_server: 'http://a.example'}}", ".api_server", "must be https"),
        (f"{CALLERS}\n{CLUSTER}, jwks_url: 'http://a.example'}}", ".jwks_url", "must be https"),
        (f"{CALLERS}\n{CLUSTER}, jwks_url: 'https://u@a.example'}}", ".jwks_url", "user name"),
        (
            f"{CALLERS}\n{CLUSTER}, jwks_url: 'https://a.example', jwks_file: k}}",
            "kubernetes.jwks_file",
            "beside jwks_url",
        ),
        (
            f"{CALLERS}\n{CLUSTER}, verification: token_review, jwks_file: k}}",
            "kubernetes.jwks_file",
            "has no effect",
        ),
        (f"{CALLERS}\n{CLUSTER}, token_file: 3}}", "kubernetes.token_file", "must be text"),
        (f"callers: [{CALLER}, key: {{env: K}}}}]", "callers[0]", "exactly one of"),
        ("callers: [{name: a, service_account: x}]", ".service_account", "must be a mapping"),
        ("callers: [{name: a, service_account: {name: x}}]", ".namespace", "is missing"),
        ("callers: [{name: a, service_account: {namespace: x}}]", ".name", "is missing"),
        (
            "callers: [{name: a, service_account: {namespace: A_b, name: x}}]",
            ".namespace",
            "must be a namespace",
        ),
        (
            "callers: [{name: a, service_account: {namespace: a, name: 'x:y'}}]",
            ".service_account.name",
            "service account's name",
        ),
        (
            "callers: [{name: a, service_account: {namespace: a, name: '*'}}]",
            ".service_account.name",
            "service account's name",
        ),
    ],
)
def test_what_is_refused(desk: Desk, text: str, path: str, words: str) -> None:
    """Each mistake is named by its path, with what to do."""
    found = desk.findings(text, environ={"K": "0123456789abcdefghij"})
    assert [each for each in found if each.path.endswith(path) and words in each.message], found


def test_two_callers_with_one_account(desk: Desk) -> None:
    """Pods with one account cannot be told apart: who of the two asks would be chance."""
    two = f"callers: [{CALLER}}}, {CALLER.replace('name: a', 'name: b', 1)}}}]\n{CLUSTER}}}"
    (finding,) = desk.findings(two)
    assert finding.path == "callers[1]"
    assert "has the same service account as callers[0]" in finding.message


def test_a_change_applies_at_once(desk: Desk) -> None:
    """SIGHUP brings another cluster without a restart."""
    old = desk.load(f"{CALLERS}\n{CLUSTER}}}")
    new = desk.load(f"{CALLERS}\n{CLUSTER}, verification: token_review}}")
    found = changes(old, new)
    assert (found.applied, found.restart) == (("kubernetes",), ())
    assert found.settings.kubernetes == new.kubernetes
    assert changes(old, replace(old)).applied == ()


def test_the_document_s_example_loads(desk: Desk) -> None:
    """What docs/callers.md shows of the configuration is accepted as it stands."""
    document = (_EXAMPLE.parent / "docs" / "callers.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    callers, cluster = (each for each in shown if not each.startswith("containers:"))
    settings = desk.load(callers.replace("…", "0f" * 32) + cluster)
    assert [caller.service_account for caller in settings.callers] == [
        None,
        ServiceAccount("payments", "reports"),
    ]
    assert settings.warnings == ()
