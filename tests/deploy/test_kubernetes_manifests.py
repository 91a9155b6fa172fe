"""deploy/kubernetes: valid, restricted, without a secret, and what the daemon can work with."""

from __future__ import annotations

import base64
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from daemon import __version__
from daemon.config.loading import load_settings
from daemon.config.settings import Permission, Settings
from daemon.domain.role import Role
from tests.deploy.manifests import (
    KUBECTL,
    KUBERNETES,
    OVERLAYS,
    Manifest,
    Pod,
    completed,
    errors,
    files,
    kustomizations,
    pods,
    rendered,
    rendered_from,
    unrestricted,
)
from tests.support.tokenward import ROOT

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="no kubectl on this machine")

# The oldest version that knows what an overlay uses, and the newest that the schemas know.
VERSIONS = {
    "sidecar": ("1.29", "1.37"),
    "job-sidecar": ("1.27", "1.37"),
    "central": ("1.30", "1.37"),
}
CUSTOM = {"ServiceMonitor"}
# Drain of a refresh in flight, then of open requests, and the ingress' five seconds.
SLOWEST_STOP = 70 + 20 + 5

PODS = [
    ("central", "example-app"),
    ("central", "tokenward"),
    ("job-sidecar", "example-job"),
    ("sidecar", "example-app"),
]

DEPLOYING = ROOT / "docs" / "deploying.md"

_whole = cache(rendered)


def all_pods() -> list[tuple[str, Pod]]:
    """Return every pod that would run, with its overlay."""
    return [(overlay, pod) for overlay in OVERLAYS for pod in pods(_whole(overlay))]


@pytest.fixture(params=PODS, ids="/".join)
def placed(request: pytest.FixtureRequest) -> tuple[str, Pod]:
    """One of the pods, with its overlay."""
    overlay, name = request.param
    (pod,) = (pod for pod in pods(_whole(overlay)) if pod.name == name)
    return overlay, pod


def one(overlay: str, kind: str, name: str) -> Any:
    """Return one object of an overlay."""
    (found,) = (m for m in _whole(overlay) if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_applied_is_valid(overlay: str) -> None:
    """Every object of an overlay fits the schemas of the oldest and the newest Kubernetes."""
    objects = [m for m in _whole(overlay) if m["kind"] not in CUSTOM]
    assert {m["kind"] for m in _whole(overlay)} >= {"ConfigMap", "NetworkPolicy", "Service"}
    wrong = {
        f"{m['kind']}/{m['metadata']['name']} in {version}": found
        for version in VERSIONS[overlay]
        for m in objects
        if (found := errors(m, version))
    }
    assert wrong == {}


def test_every_file_is_valid_by_itself() -> None:
    """Without kubectl, too: each document and each patch fits the schemas."""
    wrong = {
        f"{path}: {document['kind']}": found
        for path, several in files().items()
        for document in several
        if document["kind"] not in CUSTOM
        if (found := errors(_judged(document), "1.37"))
    }
    assert wrong == {}


def _judged(document: Manifest) -> Manifest:
    return completed(document) if document["metadata"]["name"] == "any" else document


def test_a_wrong_word_is_found() -> None:
    """The schemas are strict: a word that Kubernetes would ignore is an error here."""
    (patch,) = files()["components/sidecar/sidecar.yaml"]
    spelled = completed(patch)
    assert errors(spelled, "1.37") == []
    spelled["spec"]["template"]["spec"]["initContainers"][0]["startupprobe"] = {}
    assert "startupprobe" in errors(spelled, "1.37")[0]


def test_kustomizations_name_what_exists() -> None:
    """Every resource, component, patch and generated file is there, and every file is named."""
    named: set[Path] = set()
    for directory, kustomization in kustomizations().items():
        places = [*kustomization.get("resources", []), *kustomization.get("components", [])]
        places += [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        for generator in kustomization.get("configMapGenerator", []):
            places += generator["files"]
        for place in places:
            path = (directory / place).resolve()
            assert path.exists(), f"{directory}: {place}"
            named.add(path / "kustomization.yaml" if path.is_dir() else path)
        for image in kustomization.get("images", []):
            assert image["newTag"] == __version__
    overlays = {KUBERNETES / "overlays" / name / "kustomization.yaml" for name in OVERLAYS}
    assert set(KUBERNETES.rglob("*.yaml")) - named == overlays


def test_no_secret_is_in_a_manifest() -> None:
    """Secrets are named and made elsewhere: no Secret, and no variable that holds one."""
    for path, several in files().items():
        for document in several:
            assert document["kind"] != "Secret", path
    for kustomization in kustomizations().values():
        assert "secretGenerator" not in kustomization


@needs_kubectl
def test_every_pod_is_looked_at() -> None:
    """The list above is all that runs."""
    assert sorted((overlay, pod.name) for overlay, pod in all_pods()) == PODS


@needs_kubectl
def test_pods_are_restricted(placed: tuple[str, Pod]) -> None:
    """Every container is as the pod security standard `restricted` wants it, and read-only."""
    overlay, pod = placed
    assert unrestricted(pod) == [], overlay
    assert pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["enableServiceLinks"] is False
    assert one(overlay, "Namespace", "tokenward")["metadata"]["labels"][
        "pod-security.kubernetes.io/enforce"
    ] == ("restricted")


@needs_kubectl
def test_the_daemon_can_work_with_what_its_pod_gives_it(
    placed: tuple[str, Pod], tmp_path: Path
) -> None:
    """Role, variables and mounted files make a configuration; nothing is missing or too much."""
    overlay, pod = placed
    container = pod.tokenward
    assert container["args"][:2] == ["run", "--role"]
    role = Role(container["args"][2])
    assert pod.labels["tokenward/role"] == role
    settings = _settings(pod, tmp_path, role)
    assert settings.listen.ops.allow_non_loopback
    assert settings.listen.api.address is not None
    assert settings.listen.api.address.host == "127.0.0.1"
    secrets = set(pod.secret_files(container).values())
    assert ("acme-client-secret" in secrets) is role.refreshes
    # The journal's place: a volume of its own only where somebody refreshes for all.
    assert pod.claims == (("state",) if role is Role.REFRESH else ())
    assert settings.warnings == ()
    assert settings.listen.api.quitquitquit is (overlay == "job-sidecar")
    # A volume's own directory is root's, and its mode is not ours to set.
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.state_dir.parent) in mounts
    assert str(settings.state_dir) not in mounts


def _settings(pod: Pod, directory: Path, role: Role) -> Settings:
    """Return the settings that tokenward would have in a pod, its files being under a directory."""
    container = pod.tokenward
    text = (KUBERNETES / "base" / "tokenward.yaml").read_text()
    environ = {entry["name"]: entry["value"] for entry in container.get("env", [])}
    for number, (path, key) in enumerate(pod.secret_files(container).items()):
        file = directory / str(number)
        file.touch(mode=0o440)
        file.chmod(0o600)
        file.write_text(_SECRETS[key])
        text = text.replace(path, str(file))
        environ = {name: value.replace(path, str(file)) for name, value in environ.items()}
    config = directory / "tokenward.yaml"
    config.write_text(text)
    return load_settings(path=config, environ=environ, role=role)


_SECRETS = {
    "database-url": "postgresql://tokenward:password@postgres/tokenward",
    "encryption-key-2026-11": base64.b64encode(bytes(range(32))).decode(),
    "acme-client-secret": "a client secret",
    "operator-key": "operator-key-of-some-length",
}


_APPLICATION = """
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: billing, labels: {tokenward/sidecar: "true"}}
spec:
  serviceName: billing
  selector: {matchLabels: {app: billing}}
  template:
    metadata: {labels: {app: billing}}
    spec:
      initContainers: [{name: prepare, image: prepare}]
      containers: [{name: app, image: app}]
"""


@needs_kubectl
def test_an_application_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    """What docs/deploying.md says to write gives it a serving sidecar, before all it starts."""
    found = re.search(r"```yaml\n(namespace: .*?)```", DEPLOYING.read_text(), re.DOTALL)
    assert found is not None
    way = os.path.relpath(KUBERNETES, tmp_path)
    text = found[1].replace("tokenward/deploy/kubernetes", way)
    (tmp_path / "kustomization.yaml").write_text(text)
    (tmp_path / "deployment.yaml").write_text(_APPLICATION)
    (tmp_path / "tokenward.yaml").write_text("callers: []")
    objects = rendered_from(tmp_path)
    assert {m["metadata"].get("namespace", m["metadata"]["name"]) for m in objects} == {"payments"}
    (config,) = (m for m in objects if m["kind"] == "ConfigMap")
    assert config["data"] == {"tokenward.yaml": "callers: []"}
    (pod,) = pods(objects)
    assert [c["name"] for c in pod.containers] == ["tokenward", "prepare", "app"]
    assert pod.tokenward["args"] == ["run", "--role", "serve"]
    assert "acme-client-secret" not in pod.secret_files(pod.tokenward).values()
    (volume,) = (v for v in pod.spec["volumes"] if v["name"] == "tokenward-config")
    assert volume["configMap"]["name"] == config["metadata"]["name"]


@needs_kubectl
def test_secrets_are_seen_by_tokenward_alone(placed: tuple[str, Pod]) -> None:
    """The application's container sees no secret, only its own token for the audience."""
    overlay, pod = placed
    others = [c for c in pod.containers if c["name"] != "tokenward"]
    assert [pod.secret_files(c) for c in others] == [{}] * len(others), overlay
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for container in others:
        (mount,) = container["volumeMounts"]
        (source,) = volumes[mount["name"]]["projected"]["sources"]
        assert source["serviceAccountToken"]["audience"] == "tokenward"
        assert container["securityContext"]["runAsUser"] != 65532
    # The group may read, others may not: 0440.
    assert volumes["tokenward-secrets"]["secret"]["defaultMode"] == 0o440
    assert volumes["tokenward-secrets"]["secret"]["secretName"] == "tokenward"
    assert pod.spec["securityContext"]["fsGroup"] == 65532


@needs_kubectl
def test_callers_are_the_service_accounts_of_their_pods(tmp_path: Path) -> None:
    """Namespace and name in the configuration are those under which the pods really run."""
    for overlay, pod in all_pods():
        directory = tmp_path / overlay / pod.name
        directory.mkdir(parents=True)
        settings = _settings(pod, directory, Role(pod.tokenward["args"][2]))
        accounts = [c.service_account for c in settings.callers if c.service_account]
        running = one(overlay, "ServiceAccount", pod.spec["serviceAccountName"])["metadata"]
        if pod.labels["tokenward/role"] != "refresh":
            assert [(a.namespace, a.name) for a in accounts] == [
                (running["namespace"], running["name"])
            ]


@needs_kubectl
def test_somebody_may_connect_accounts(tmp_path: Path) -> None:
    """Wherever tokens are refreshed the operator has a key, and an application may not manage."""
    for overlay, pod in all_pods():
        directory = tmp_path / overlay / pod.name
        directory.mkdir(parents=True)
        role = Role(pod.tokenward["args"][2])
        callers = _settings(pod, directory, role).callers
        managing = {c.name for c in callers if Permission.MANAGE in c.permissions}
        # A Job's own tokenward only serves: there it means that the Job may end it.
        assert managing == {"operator"} if role.refreshes else managing <= {"example-job"}


@needs_kubectl
def test_probes_and_the_time_to_stop(placed: tuple[str, Pod]) -> None:
    """Each probe asks its own route of the ops listener, and a stop has the time it may need."""
    overlay, pod = placed
    container = pod.tokenward
    for probe in ("startup", "readiness", "liveness"):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": f"/{probe}", "port": 7422}
    assert pod.spec["terminationGracePeriodSeconds"] >= SLOWEST_STOP, overlay
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"].keys() == {"memory"}


@needs_kubectl
def test_native_sidecars_start_first_and_are_not_told_to_quit() -> None:
    """Deployments have a restartable init container without a preStop hook; the Job has none."""
    for overlay, pod in all_pods():
        native = pod.kind == "Deployment"
        assert pod.is_native_sidecar is native, overlay
        if native:
            assert pod.tokenward["restartPolicy"] == "Always"
            assert "lifecycle" not in pod.tokenward
    (job,) = pods(_whole("job-sidecar"))
    (script,) = job.containers[0]["args"]
    assert "trap 'ask --request POST http://127.0.0.1:7420/quitquitquit' EXIT" in script


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_lead_to_open_listeners_only(overlay: str) -> None:
    """No Service, no Ingress and no policy mentions the api listener; selectors find their pods."""
    found = list(pods(_whole(overlay)))
    for service in (m for m in _whole(overlay) if m["kind"] == "Service"):
        ports = {port["targetPort"] for port in service["spec"]["ports"]}
        assert ports <= {7421, 7422}
        selector = service["spec"]["selector"].items()
        assert any(selector <= pod.labels.items() for pod in found), service["metadata"]["name"]
    for ingress in (m for m in _whole(overlay) if m["kind"] == "Ingress"):
        (rule,) = ingress["spec"]["rules"]
        paths = rule["http"]["paths"]
        assert {path["path"] for path in paths} == {"/connect", "/callback"}
        backends = [path["backend"]["service"] for path in paths]
        assert backends == [{"name": "tokenward-public", "port": {"number": 7421}}] * 2
        assert f"https://{rule['host']}" in (KUBERNETES / "base" / "tokenward.yaml").read_text()
    policies = [m["spec"] for m in _whole(overlay) if m["kind"] == "NetworkPolicy"]
    opened = {
        port["port"]
        for policy in policies
        for rule in policy.get("ingress", [])
        for port in rule["ports"]
    }
    assert opened <= {7421, 7422}
    assert all(
        any(policy["podSelector"]["matchLabels"].items() <= pod.labels.items() for pod in found)
        for policy in policies
    )


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_finds_every_pod(overlay: str) -> None:
    """The ServiceMonitor selects the one Service whose pods are all those with a tokenward."""
    (monitor,) = (m for m in _whole(overlay) if m["kind"] == "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {"port": "ops", "path": "/metrics", "interval": "15s"}
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [m for m in _whole(overlay) if m["kind"] == "Service"]
    (service,) = (s for s in services if wanted <= s["metadata"]["labels"].items())
    # The rules look at jobs whose name begins with tokenward.
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]].startswith("tokenward")
    assert [port["name"] for port in service["spec"]["ports"]] == ["ops"]
    for pod in pods(_whole(overlay)):
        assert service["spec"]["selector"].items() <= pod.labels.items()


@needs_kubectl
def test_the_central_refresher() -> None:
    """Two replicas with a journal each that is never thrown away, one of which may be away."""
    spec = one("central", "StatefulSet", "tokenward")["spec"]
    assert spec["replicas"] == 2
    assert spec["persistentVolumeClaimRetentionPolicy"] == {
        "whenDeleted": "Retain",
        "whenScaled": "Retain",
    }
    headless = one("central", "Service", spec["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"
    budget = one("central", "PodDisruptionBudget", "tokenward")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = spec["template"]["metadata"]["labels"].items()
    constraints = spec["template"]["spec"]["topologySpreadConstraints"]
    selectors = [spec["selector"], headless, budget["selector"]]
    selectors += [constraint["labelSelector"] for constraint in constraints]
    for selector in selectors:
        assert selector.get("matchLabels", selector.get("selector", {})).items() <= labels
    assert [c["topologyKey"] for c in constraints] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
