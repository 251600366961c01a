"""What the testbed has and whether it is well; and everything there is to know when it is not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import helm, ports
from .cluster import Cluster
from .docker import Docker
from .install import NAMESPACES
from .settings import Settings

WATCHED = (*NAMESPACES, helm.NAMESPACE)
LOGS = (  # namespace, what to ask for, and how much of it
    (helm.NAMESPACE, ("--selector=app.kubernetes.io/name=tidegate", "--all-containers", "--prefix", "--tail=2000")),
    ("kserve", ("deployment/kserve-controller-manager", "--tail=500")),
    ("knative-serving", ("deployment/controller", "--tail=500")),
    ("knative-serving", ("deployment/activator", "--tail=300")),
    ("knative-serving", ("deployment/autoscaler", "--tail=300")),
    ("knative-serving", ("deployment/net-kourier-controller", "--tail=300")),
    ("kourier-system", ("deployment/3scale-kourier-gateway", "--tail=500")),
)


def deployment_state(item: Mapping[str, Any]) -> tuple[str, int, int]:
    """A deployment's name, how many of its pods are available, and how many there should be."""
    metadata = item["metadata"]
    wanted = item["spec"].get("replicas", 1)
    return f"{metadata['namespace']}/{metadata['name']}", item.get("status", {}).get("availableReplicas", 0), wanted


def unwell_pods(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Pods that wait for something or have failed, each with the reason that Kubernetes gives."""
    found = []
    for item in items:
        name = f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        status = item.get("status", {})
        reasons = [
            state["waiting"].get("reason", "waiting")
            for group in ("initContainerStatuses", "containerStatuses")
            for state in (container.get("state", {}) for container in status.get(group, []))
            if "waiting" in state
        ]
        if status.get("phase") == "Failed":
            reasons.append(status.get("reason", "Failed"))
        reasons = [reason for reason in reasons if reason not in ("PodInitializing", "ContainerCreating")]
        if reasons:
            found.append(f"{name}: {', '.join(reasons)}")
    return found


def show(settings: Settings, docker: Docker, cluster: Cluster, as_json: bool) -> int:
    """Print the state; the exit status says whether all is well."""
    mapped = ports.recorded(settings)
    if mapped is None or not docker.found() or not cluster.exists():
        if as_json:
            print(json.dumps({"cluster": settings.cluster, "exists": False}))
        else:
            print(f"there is no cluster {settings.cluster}; `make up` creates it")
        return 1
    answers = cluster.ready()
    found = (cluster.get("deployments", "--all-namespaces") or {}).get("items", []) if answers else []
    states = [deployment_state(item) for item in found if item["metadata"]["namespace"] in WATCHED]
    pods = unwell_pods((cluster.get("pods", "--all-namespaces") or {}).get("items", [])) if answers else []
    well = answers and bool(states) and all(available >= wanted for _, available, wanted in states)
    if as_json:
        state = {
            "cluster": settings.cluster,
            "exists": True,
            "answers": answers,
            "well": well,
            "ports": mapped,
            "deployments": {name: {"available": available, "wanted": wanted} for name, available, wanted in states},
            "unwell": pods,
        }
        print(json.dumps(state, indent=2))
        return 0 if well else 1
    daemon = f"our own Docker daemon ({docker.own_host})" if docker.own else "the Docker daemon that answers"
    print(
        f"cluster     {settings.cluster}, {'its API server answers' if answers else 'its API server does NOT answer'}"
    )
    print(f"runs on     {daemon}")
    print(f"kubeconfig  {settings.kubeconfig}")
    print(f"models      http://NAME.NAMESPACE.localhost:{mapped['http']}")
    print(f"prometheus  http://localhost:{mapped['prometheus']}")
    print(f"s3          http://localhost:{mapped['s3']}")
    for name, available, wanted in states:
        print(f"  {'ok  ' if available >= wanted else 'NOT '} {name} {available}/{wanted}")
    if not any(name.startswith(f"{helm.NAMESPACE}/") for name, _, _ in states) and answers:
        print("  --   Tidegate itself is not deployed")
    for pod in pods:
        print(f"  NOT  pod {pod}")
    return 0 if well else 1


def dump(settings: Settings, docker: Docker, cluster: Cluster, folder: Path) -> int:
    """Write what the cluster says into a folder, one file for each question; an answer that fails is one, too."""
    folder.mkdir(parents=True, exist_ok=True)

    def ask(name: str, command: Iterable[str]) -> None:
        words = list(command)
        with (folder / name).open("w") as file:
            file.write("$ " + " ".join(words) + "\n")
            file.flush()
            try:
                subprocess.run(
                    words,
                    env=cluster.env,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=60,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                file.write(f"{error}\n")

    if not docker.found() or not cluster.exists():
        print(f"there is no cluster {settings.cluster} to ask")
        return 1
    ask("pods.txt", ["kubectl", "get", "pods", "--all-namespaces", "-o", "wide"])
    ask("events.txt", ["kubectl", "get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"])
    ask("nodes.txt", ["kubectl", "describe", "nodes"])
    kinds = "deployments,replicasets,services,configurations.serving.knative.dev,revisions,routes.serving.knative.dev"
    kinds += ",ingresses.networking.internal.knative.dev,podautoscalers.autoscaling.internal.knative.dev"
    ask("objects.yaml", ["kubectl", "get", kinds, "--all-namespaces", "-o", "yaml"])
    ask("services.txt", ["kubectl", "get", "ksvc,inferenceservices", "--all-namespaces", "-o", "yaml"])
    ask("tidegate.yaml", ["kubectl", "get", "modeldeployments,modelversions", "--all-namespaces", "-o", "yaml"])
    ask("releases.txt", ["helm", "list", "--all-namespaces"])
    for namespace, what in LOGS:
        name = what[0].removeprefix("deployment/") if what[0].startswith("deployment/") else "operator"
        ask(f"log-{name}.txt", ["kubectl", "logs", "-n", namespace, *what])
    ask("node-containers.txt", ["docker", "ps", "--all", "--no-trunc"])
    ask(
        "node-kubelet.txt", ["docker", "exec", settings.node, "journalctl", "-u", "kubelet", "--no-pager", "-n", "1000"]
    )
    ask("node-images.txt", ["docker", "exec", settings.node, "ctr", "-n", "k8s.io", "images", "ls"])
    ask("node-memory.txt", ["docker", "exec", settings.node, "free", "-m"])
    print(folder)
    return 0
