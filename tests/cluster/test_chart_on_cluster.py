"""The chart on a real API server: what it would install is accepted, and its account may do what it needs, no more."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

import helm as charts
from helm import CHART, NAMESPACE, RELEASE, Helm, HelmError
from live import Kubectl

pytestmark = pytest.mark.cluster

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
EVERYTHING = (
    "metrics.scrapeAnnotations=false",
    "metrics.podMonitor.enabled=true",
    "image.pullPolicy=Always",
    'imagePullSecrets=[{"name":"registry"}]',
    'serviceAccount.annotations={"example.com/role":"operator"}',
    'podAnnotations={"example.com/touched":"1"}',
    'podLabels={"example.com/team":"models"}',
    "priorityClassName=system-cluster-critical",
    'nodeSelector={"kubernetes.io/os":"linux"}',
    'tolerations=[{"key":"dedicated","operator":"Exists"}]',
    'affinity={"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[]}}',
    'dashboards.annotations={"grafana_folder":"Serving"}',
    "ledger.persistence.enabled=true",
)

NEEDS = {
    ("tidegate.dev", "modeldeployments", "get list watch"),
    ("tidegate.dev", "modeldeployments/status", "patch"),
    ("tidegate.dev", "modelversions", "list watch create patch delete"),
    ("tidegate.dev", "modelversions/status", "patch"),
    ("serving.knative.dev", "routes", "get list watch create patch"),
    ("serving.knative.dev", "configurations", "list watch create patch delete"),
    ("serving.knative.dev", "revisions", "list watch patch"),
    ("networking.internal.knative.dev", "ingresses", "list"),
    ("serving.kserve.io", "inferenceservices", "list watch create patch delete"),
    ("serving.kserve.io", "servingruntimes", "list watch"),
    ("serving.kserve.io", "clusterservingruntimes", "list watch"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "list watch"),
    ("", "configmaps/config-features", "get"),
    ("", "pods", "list watch"),
    ("", "events", "create"),
}
"""What the operator does anywhere: group, resource (or the one name of it, after a slash), verbs."""
LEASES = {
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases/tidegate-operator", "get update patch"),
}


@pytest.fixture(scope="module")
def helm(testbed: dict[str, str]) -> Helm:
    path = charts.found()
    assert path, "the testbed has a helm"
    return Helm(path, testbed)


def allowed(kubectl: Kubectl, who: str, namespace: str) -> set[tuple[str, str, str]]:
    """Group, resource (and name, where the rule has some) and verb of all that somebody may do in a namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    said = kubectl("create", "--validate=false", "-f", "-", "-o", "json", "--as", who, input=json.dumps(review))
    rules = json.loads(said)["status"]["resourceRules"]
    return {
        (group, f"{resource}/{name}" if name else resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    }


def spread(table: set[tuple[str, str, str]]) -> set[tuple[str, str, str]]:
    return {(group, resource, verb) for group, resource, verbs in table for verb in verbs.split()}


# --- what would be installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), EVERYTHING], ids=["defaults", "everything"])
def test_server_accepts_every_object(kubectl: Kubectl, helm: Helm, namespace: str, settings: tuple[str, ...]) -> None:
    text = helm.render(
        f'watchNamespaces=["{namespace}"]', *settings, namespace=namespace, apis=(charts.KSERVE_RUNTIMES,)
    )
    words = ("--server-side", "--dry-run=server", "--force-conflicts", "--field-manager=helm", "--validate=strict")
    accepted = kubectl("apply", *words, "-f", "-", input=text).splitlines()
    assert len(accepted) == len(list(charts.objects(text)))


def test_helm_itself_would_upgrade(helm: Helm) -> None:
    values = helm("get", "values", RELEASE, "--namespace", NAMESPACE, "--output", "json")
    told = helm("upgrade", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=server", "--values", "-", input=values)
    assert "NOTES:" in told
    assert "MISSING" not in told, "Knative and KServe are seen to be there"


def test_wrong_value_stops_an_installation(helm: Helm, namespace: str) -> None:
    with pytest.raises(HelmError, match="at '/replicas': got string, want integer"):
        helm("install", "wrong", CHART, "--namespace", namespace, "--set", "replicas=two")


def test_pods_pass_the_restricted_standard(kubectl: Kubectl) -> None:
    """The server warns of pods that are there and would not be let in."""
    label = "pod-security.kubernetes.io/enforce=restricted"
    done = subprocess.run(
        ["kubectl", "label", "namespace", NAMESPACE, label, "--overwrite", "--dry-run=server"],
        env=kubectl.env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""


# --- who may do what --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anybody(kubectl: Kubectl, namespace: str) -> set[tuple[str, str, str]]:
    """What any account may do."""
    return allowed(kubectl, f"system:serviceaccount:{namespace}:default", namespace)


def test_operator_may_do_what_it_needs_and_nothing_else(
    kubectl: Kubectl, namespace: str, anybody: set[tuple[str, str, str]]
) -> None:
    assert allowed(kubectl, ACCOUNT, namespace) - anybody == spread(NEEDS)
    assert allowed(kubectl, ACCOUNT, NAMESPACE) - anybody == spread(NEEDS | LEASES)


@pytest.mark.parametrize(
    "what",
    [
        "get secrets",
        "list secrets",
        "get pods",
        "delete pods",
        "create pods",
        "list configmaps",
        "get configmaps/other",
        "update modeldeployments.tidegate.dev",
        "patch modeldeployments.tidegate.dev",
        "delete modeldeployments.tidegate.dev",
        "delete routes.serving.knative.dev",
        "create revisions.serving.knative.dev",
        "delete revisions.serving.knative.dev",
        "patch services.serving.knative.dev",
        "patch customresourcedefinitions.apiextensions.k8s.io",
        "patch clusterservingruntimes.serving.kserve.io",
        "create leases.coordination.k8s.io",
        "impersonate users",
        "escalate clusterroles.rbac.authorization.k8s.io",
    ],
)
def test_operator_may_not(kubectl: Kubectl, namespace: str, what: str) -> None:
    command = ["kubectl", "auth", "can-i", *what.split(), "-n", namespace, "--as", ACCOUNT]
    answer = subprocess.run(command, env=kubectl.env, capture_output=True, text=True, timeout=60, check=False)
    assert answer.stdout.strip() == "no", answer.stderr


@pytest.fixture(scope="module")
def people(kubectl: Kubectl, namespace: str) -> dict[str, set[tuple[str, str, str]]]:
    """What people with Kubernetes' own roles may do with our kinds."""
    said: dict[str, set[tuple[str, str, str]]] = {}
    for role in ("view", "edit", "admin"):
        binding: dict[str, Any] = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"chart-test-{role}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"chart-test-{role}"}],
        }
        kubectl.apply(binding, namespace=namespace)
        said[role] = {each for each in allowed(kubectl, f"chart-test-{role}", namespace) if each[0] == "tidegate.dev"}
    return said


def test_people_see_and_change_by_their_ordinary_roles(people: dict[str, set[tuple[str, str, str]]]) -> None:
    seen = {("tidegate.dev", kind, "get list watch") for kind in ("modeldeployments", "modelversions")}
    changed = {("tidegate.dev", "modeldeployments", "create update patch delete deletecollection")}
    assert people["view"] == spread(seen)
    assert people["edit"] == people["admin"] == spread(seen | changed)
