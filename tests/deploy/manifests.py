"""The Kubernetes manifests as values, whole by `kubectl kustomize` or file by file without it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
from ruamel.yaml import YAML

from tests.support.tokenward import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("central", "job-sidecar", "sidecar")
KUBECTL = shutil.which("kubectl")
WORKLOADS = ("Deployment", "StatefulSet", "Job")

Manifest = Mapping[str, Any]


def documents(text: str) -> list[Manifest]:
    """Return the documents of a YAML stream."""
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document]


def rendered(overlay: str) -> list[Manifest]:
    """Return what would be applied. Needs kubectl, no cluster and no network."""
    return rendered_from(KUBERNETES / "overlays" / overlay)


def rendered_from(directory: Path) -> list[Manifest]:
    """Return what a directory's kustomization makes. Needs what ``rendered`` does."""
    if KUBECTL is None:
        raise AssertionError("there is no kubectl")
    done = subprocess.run(  # noqa: S603 - kubectl on our own files
        [KUBECTL, "kustomize", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def files() -> dict[str, list[Manifest]]:
    """Return the documents of every file by its path, without kustomize's own."""
    return {
        str(path.relative_to(KUBERNETES)): documents(path.read_text())
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        if path.name not in {"kustomization.yaml", "tokenward.yaml"}
    }


def kustomizations() -> dict[Path, Manifest]:
    """Return every kustomization by its directory."""
    found = sorted(KUBERNETES.rglob("kustomization.yaml"))
    return {path.parent: documents(path.read_text())[0] for path in found}


def errors(manifest: Manifest, version: str) -> list[str]:
    """Return what the schema of a Kubernetes version finds wrong; unknown keys are wrong."""
    try:
        kubernetes_validate.validate(dict(manifest), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def completed(patch: Manifest) -> Manifest:
    """Return a patch with what every workload has, so that a schema can judge it."""
    template = patch["spec"]["template"]
    containers = [{"name": "app", "image": "app"}]
    return {
        **patch,
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            **patch["spec"],
            "template": {**template, "spec": {"containers": containers, **template["spec"]}},
        },
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """The pod of a workload. ``name`` is the workload's."""

    name: str
    kind: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    claims: tuple[str, ...] = ()

    @property
    def containers(self) -> list[Manifest]:
        """Return all containers, the native sidecars first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def tokenward(self) -> Manifest:
        """Return the one container that runs tokenward."""
        (found,) = (c for c in self.containers if c["name"] == "tokenward")
        return found

    @property
    def is_native_sidecar(self) -> bool:
        """Tell whether tokenward starts before and stops after the application."""
        return self.tokenward in self.spec.get("initContainers", [])

    def secret_files(self, container: Manifest) -> dict[str, str]:
        """Return the keys of Secrets that a container sees, by the path where it does."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        found = {}
        for mount in container.get("volumeMounts", []):
            for item in volumes.get(mount["name"], {}).get("secret", {}).get("items", []):
                found[f"{mount['mountPath']}/{item['path']}"] = item["key"]
        return found


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    """Yield the pod of every workload."""
    for manifest in manifests:
        if manifest["kind"] in WORKLOADS:
            template = manifest["spec"]["template"]
            claims = manifest["spec"].get("volumeClaimTemplates", [])
            yield Pod(
                name=manifest["metadata"]["name"],
                kind=manifest["kind"],
                labels=template["metadata"]["labels"],
                spec=template["spec"],
                claims=tuple(claim["metadata"]["name"] for claim in claims),
            )


def unrestricted(pod: Pod) -> list[str]:
    """Return what the pod security standard ``restricted`` forbids, and what we do beyond it."""
    ours = pod.spec.get("securityContext", {})
    found = [f"pod: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(key)]
    if ours.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("pod: seccompProfile")
    allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    for volume in pod.spec.get("volumes", []):
        found += [f"volume {volume['name']}: {kind}" for kind in {*volume} - {"name"} - allowed]
    for container in pod.containers:
        context = {**ours, **container.get("securityContext", {})}
        wanted = {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        found += [
            f"{container['name']}: {key}"
            for key, value in wanted.items()
            if context.get(key) != value
        ]
        if not context.get("runAsUser") or not context.get("runAsGroup"):
            found.append(f"{container['name']}: runs as nobody in particular")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append(f"{container['name']}: hostPort")
    return found
