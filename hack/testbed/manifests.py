"""The Kubernetes objects of the testbed, from the manifests in the components' Go modules and a few of our own.

Everything here is a function from documents to documents. They come out in layers, each applied once the one before it
works: definitions first, webhooks only once what they call is there.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .ports import NODE_PORTS

Doc = dict[str, Any]
LAYERS = ("definitions", "core", "kserve", "fixtures", "webhooks", "late")
NAMESPACE = "tidegate-testbed"
KSERVE_WEBHOOK = "kserve-webhook-server-service.kserve.svc"
S3_REGION, BUCKET = "us-east-1", "models"
Loader = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # the one in C is ten times as fast, and KServe's files are large

KNATIVE_CONFIG: Mapping[str, Mapping[str, str]] = {
    "config-network": {"ingress-class": "kourier.ingress.networking.knative.dev"},
    "config-domain": {"localhost": ""},  # resolves to this machine everywhere, without DNS
    "config-features": {
        "tag-header-based-routing": "enabled",
        **{
            f"kubernetes.podspec-{feature}": "enabled"
            for feature in (
                *("nodeselector", "affinity", "tolerations", "runtimeclassname"),
                *("persistent-volume-claim", "persistent-volume-write"),
            )
        },
    },
    "config-observability": {"metrics-protocol": "prometheus", "request-metrics-protocol": "prometheus"},
}


@dataclass(frozen=True)
class Sources:
    """Where each component's module lies on disk."""

    serving: Path
    networking: Path
    caching: Path
    kourier: Path
    kserve: Path

    @property
    def kserve_manifest(self) -> Path:
        version = self.kserve.name.rpartition("@")[2]
        return self.kserve / "install" / version / "kserve.yaml"

    def knative_files(self) -> list[Path]:
        """Knative Serving and Kourier. Files that are links in Knative's repository are not in its module: they stand
        in those of its networking and caching libraries."""
        core = self.serving / "config" / "core"
        kourier = self.kourier / "config"
        return [
            core / "100-namespace.yaml",
            *sorted((core / "200-roles").glob("*.yaml")),
            core / "200-serviceaccount.yaml",
            *sorted((core / "300-resources").glob("*.yaml")),
            core / "300-knativecertificate.yaml",
            *(
                self.networking / "config" / f"{name}.yaml"
                for name in ("certificate", "config-network", "domain-claim", "ingress", "serverlessservice")
            ),
            self.caching / "config" / "image.yaml",
            *sorted((core / "configmaps").glob("*.yaml")),
            *(
                core / "webhooks" / f"{name}.yaml"
                for name in ("configmap-validation", "defaulting", "resource-validation", "secret")
            ),
            *(core / "deployments" / f"{name}.yaml" for name in ("activator", "autoscaler", "controller", "webhook")),
            *sorted(kourier.glob("*.yaml")),
        ]


@dataclass(frozen=True)
class Certificate:
    """What KServe's webhooks are served with, PEM."""

    authority: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class S3Account:
    access_key: str
    secret_key: str


def load(text: str) -> Iterator[Doc]:
    for doc in yaml.load_all(text, Loader):
        if doc:
            yield doc


def knative_images(text: str, image: Callable[[str], str]) -> str:
    """Put the images to use where Knative's and Kourier's sources have the names of Go packages."""
    text = re.sub(r"ko://knative\.dev/serving/cmd/([\w-]+)", lambda found: image(f"knative-{found[1]}"), text)
    text = text.replace("ko://knative.dev/net-kourier/cmd/kourier", image("kourier"))
    return re.sub(r"docker\.io/envoyproxy/envoy:\S+", image("envoy"), text)


def small(deployment: Doc) -> None:
    """Fit for one small node: next to nothing requested, nothing limited, ready as soon as it is ready.

    Limits must go too, since a limit without a request is taken for the request.
    """
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        container["resources"] = {"requests": {"cpu": "10m", "memory": "30Mi"}}
        container["imagePullPolicy"] = "IfNotPresent"
        if probe := container.get("readinessProbe"):
            probe["initialDelaySeconds"] = 1
            probe["periodSeconds"] = min(probe.get("periodSeconds", 10), 2)


def node_port(service: Doc, port: str, number: int) -> None:
    service["spec"]["type"] = "NodePort"
    for entry in service["spec"]["ports"]:
        if entry["name"] == port:
            entry["nodePort"] = number


def knative(documents: Iterable[Doc]) -> Iterator[Doc]:
    for doc in documents:
        kind, name = doc["kind"], doc["metadata"]["name"]
        if kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler"):
            continue  # for more than one node
        if kind == "Deployment":
            small(doc)
        elif kind == "ConfigMap":
            doc.setdefault("data", {}).update(KNATIVE_CONFIG.get(name, {}))
            if name == "config-deployment":
                doc["data"]["queue-sidecar-cpu-request"] = "5m"
        elif kind == "Service" and name == "kourier":
            node_port(doc, "http2", NODE_PORTS["http"])
        yield doc


def kserve_wanted(doc: Doc) -> bool:
    """KServe for InferenceServices: not its language model and node cache controllers, nor cert-manager's objects."""
    kind, name = doc["kind"], doc["metadata"]["name"]
    if kind in ("Certificate", "Issuer"):
        return False
    if kind == "CustomResourceDefinition":
        return not re.match(r"(llminference|inferencepool|inferencemodel|inferenceobjective)", name)
    return not re.search(r"llm-?isvc|llminferenceservice|localmodel", name)


def kserve(documents: Iterable[Doc], image: Callable[[str], str], certificate: Certificate) -> Iterator[Doc]:
    for doc in filter(kserve_wanted, documents):
        kind, name = doc["kind"], doc["metadata"]["name"]
        if kind.endswith("WebhookConfiguration"):
            doc["metadata"].pop("annotations", None)  # cert-manager's, which would put its own authority there
            for hook in doc["webhooks"]:
                hook["clientConfig"]["caBundle"] = base64.b64encode(certificate.authority).decode()
        elif kind == "Deployment":
            pod = doc["spec"]["template"]["spec"]
            pod["containers"] = [entry for entry in pod["containers"] if entry["name"] == "manager"]
            pod["containers"][0]["image"] = image("kserve-manager")
            small(doc)
        elif kind == "ClusterStorageContainer":
            container = doc["spec"]["container"]
            container["image"] = image("storage-initializer")
            container["resources"] = {"requests": {"cpu": "10m", "memory": "50Mi"}, "limits": {"memory": "1Gi"}}
        elif name == "inferenceservice-config":
            kserve_config(doc["data"], image)
        yield doc


def kserve_config(data: dict[str, str], image: Callable[[str], str]) -> None:
    def edit(part: str, **values: Any) -> None:
        data[part] = json.dumps({**json.loads(data[part]), **values}, indent=2)

    modest = {"cpuRequest": "10m", "memoryRequest": "30Mi"}
    data.pop("_example", None)
    edit("deploy", defaultDeploymentMode="Knative")
    edit("ingress", disableIstioVirtualHost=True, ingressClassName="kourier", ingressDomain="localhost")
    for part in ("agent", "logger", "batcher"):
        edit(part, image=image("kserve-agent"), **modest)
    edit("router", image=image("kserve-router"), **modest)
    edit("storageInitializer", image=image("storage-initializer"), **modest)
    data["inferenceService"] = json.dumps({"resource": modest}, indent=2)  # no limits


def tls_secret(certificate: Certificate) -> Doc:
    parts = {"tls.crt": certificate.certificate, "tls.key": certificate.key, "ca.crt": certificate.authority}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "kserve-webhook-server-cert", "namespace": "kserve"},
        "data": {name: base64.b64encode(content).decode() for name, content in parts.items()},
    }


def own(image: Callable[[str], str], account: S3Account, volumes: Iterable[str]) -> Iterator[Doc]:
    """Prometheus, the model store, and volumes for the default storage class."""
    template = Path(__file__).with_name("testbed.yaml").read_text()
    values = {
        "prometheus-image": image("prometheus"),
        "s3-image": image("s3"),
        "prometheus-node-port": str(NODE_PORTS["prometheus"]),
        "s3-node-port": str(NODE_PORTS["s3"]),
        "access-key": account.access_key,
        "secret-key": account.secret_key,
        "region": S3_REGION,
        "bucket": BUCKET,
    }
    yield from load(re.sub(r"\$\{([\w-]+)\}", lambda found: values[found[1]], template))
    for path in volumes:
        yield {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{NAMESPACE}-{Path(path).name}"},
            "spec": {
                "storageClassName": "standard",
                "capacity": {"storage": "5Gi"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": path},
            },
        }


def layers(
    sources: Sources,
    image: Callable[[str], str],
    certificate: Certificate,
    account: S3Account,
    volumes: Iterable[str],
) -> dict[str, list[Doc]]:
    out: dict[str, list[Doc]] = {layer: [] for layer in LAYERS}

    def sort_in(documents: Iterable[Doc], main: str) -> None:
        for doc in documents:
            kind = doc["kind"]
            if kind in ("Namespace", "CustomResourceDefinition"):
                layer = "definitions"
            elif kind.endswith("WebhookConfiguration"):
                layer = "webhooks"
            elif kind == "ClusterStorageContainer":
                layer = "late"  # KServe's own webhook must allow it
            else:
                layer = main
            out[layer].append(doc)

    text = "\n---\n".join(path.read_text() for path in sources.knative_files())
    sort_in(knative(load(knative_images(text, image))), "core")
    out["definitions"].append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}})
    sort_in(kserve(load(sources.kserve_manifest.read_text()), image, certificate), "kserve")
    out["kserve"].append(tls_secret(certificate))
    sort_in(own(image, account, volumes), "fixtures")
    return out
