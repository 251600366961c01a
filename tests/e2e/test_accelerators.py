"""Accelerators on a node that is given extended resources and labels for the test: it has none, and needs none."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from test_serving import pod_of

from conftest import FAST
from live import Kubectl, wait_for

pytestmark = pytest.mark.e2e

LABELS = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
RESOURCES = {"nvidia.com/gpu": "2", "nvidia.com/mig-1g.10gb": "3"}


def _patch_status(kubectl: Kubectl, node: str, resources: dict[str, str | None]) -> None:
    patch = {"status": {"capacity": resources, "allocatable": resources}}
    kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


@pytest.fixture(scope="module", autouse=True)
def gpus(kubectl: Kubectl) -> Iterator[None]:
    """Two GPUs, and three MIG slices, on the node; a RuntimeClass that is the ordinary one."""
    node = kubectl("get", "nodes", "-o", "name").split()[0].removeprefix("node/")
    kubectl("label", "node", node, "--overwrite", *(f"{key}={value}" for key, value in LABELS.items()))
    _patch_status(kubectl, node, dict(RESOURCES))
    runtime_class = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "t-nvidia"},
        "handler": "runc",
    }
    kubectl.apply(runtime_class)
    try:
        yield
    finally:
        kubectl("label", "node", node, *(f"{key}-" for key in LABELS))
        _patch_status(kubectl, node, dict.fromkeys(RESOURCES))
        kubectl("delete", "runtimeclass", "t-nvidia")


@pytest.mark.parametrize("backend", ["Knative", "KServe"])
def test_a_gpu_is_asked_for_and_found(model, faulty, backend) -> None:
    accelerator = {
        "count": 1,
        "products": ["NVIDIA-A100-SXM4-80GB", "NVIDIA-H100-80GB-HBM3"],
        "minMemory": "79Gi",
        "runtimeClass": "t-nvidia",
        "tolerations": [{"key": "pool", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}],
    }
    model.apply(backend=backend, model=faulty("v1"), scaling=FAST | {"min": 1}, accelerator=accelerator)
    model.wait("Ready", "True/Serving")
    spec = pod_of(model)["spec"]
    user = next(c for c in spec["containers"] if c["name"] in ("user-container", "kserve-container"))
    assert user["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["runtimeClassName"] == "t-nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists"}.items() <= next(
        t for t in spec["tolerations"] if t["key"] == "nvidia.com/gpu"
    ).items()
    assert any(t["key"] == "pool" and t["value"] == "gpu" for t in spec["tolerations"])
    assert model.ask()[0] == 200


def test_a_mig_slice_is_a_resource_of_its_own(model, faulty) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, accelerator={"mig": "1g.10gb", "count": 2})
    model.wait("Ready", "True/Serving")
    user = next(c for c in pod_of(model)["spec"]["containers"] if c["name"] == "user-container")
    assert user["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": "2"}


@pytest.mark.parametrize(
    "accelerator",
    [{"products": ["NVIDIA-B200"]}, {"minMemory": "80Gi"}, {"count": 3}],
    ids=["product", "memory", "count"],
)
def test_what_no_node_has_is_said_and_harms_nobody(model, faulty, accelerator) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout={"strategy": "Immediate"})
    model.wait("Ready", "True/Serving")
    model.apply(
        model=faulty("v2"), scaling=FAST | {"min": 1}, rollout={"strategy": "Immediate"}, accelerator=accelerator
    )

    def told() -> bool:
        message = next(c for c in model.status["conditions"] if c["type"] == "VersionsReady")["message"]
        return "nodes are available" in message

    wait_for(told, 60, "the scheduler's words are in status")
    assert model.weights() == {"v1": 100}
    assert model.ask()[0] == 200


def test_flags_of_knative_that_forbid_it_are_named(model, faulty, kubectl) -> None:
    """With the flag off, Tidegate says which flag and how to set it, starts nothing, and goes on once it is set."""
    flag = "kubernetes.podspec-tolerations"

    def switch(value: str) -> None:
        patch = json.dumps({"data": {flag: value}})
        kubectl("-n", "knative-serving", "patch", "configmap", "config-features", "--type=merge", "-p", patch)

    switch("disabled")
    try:
        model.apply(model=faulty("v1"), scaling=FAST, accelerator={})
        # what is installed is asked every 30 s at most
        model.wait("Ready", "False/KnativeFeatureDisabled", 90)
        told = next(c for c in model.status["conditions"] if c["type"] == "Ready")["message"]
        assert flag in told
        assert "kubectl -n knative-serving patch configmap config-features" in told
        label = f"tidegate.dev/deployment={model.name}"
        kind = "configurations.serving.knative.dev"
        assert not model.kubectl.json("get", kind, "-n", model.namespace, "-l", label)["items"]
    finally:
        switch("enabled")
    model.wait("Ready", "True/Serving", 120)
