"""The feedback service in the chart."""

from __future__ import annotations

from typing import Any

import pytest

import helm as charts
from helm import POD_MONITORS, Helm, objects
from tidegate.feedback.command import feedback

ON = "feedback.enabled=true"


@pytest.fixture(scope="module")
def helm() -> Helm:
    return charts.local()


def rendered(helm: Helm, *settings: str, **how: Any) -> dict[str, dict[str, Any]]:
    """The service's objects by kind, and the operator's Deployment."""
    found = {}
    for thing in objects(helm.render(*settings, **how)):
        if thing["metadata"]["name"] == "tidegate-feedback" or thing["kind"] == "Deployment":
            found[thing["kind"]] = thing
    return found


def environment(deployment: dict[str, Any]) -> dict[str, str]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}


def test_it_comes_only_when_asked_for_and_the_operator_is_told(helm: Helm) -> None:
    off = rendered(helm)
    assert off.keys() == {"Deployment"}
    assert environment(off["Deployment"]) == {}
    on = rendered(helm, ON, namespace="elsewhere")
    assert on.keys() == {"Deployment", "StatefulSet", "Service", "PersistentVolumeClaim", "NetworkPolicy"}
    assert environment(on["Deployment"]) == {"TIDEGATE_FEEDBACK_URL": "http://tidegate-feedback.elsewhere.svc"}


def test_pod_is_restricted_and_knows_nothing_of_the_cluster(helm: Helm) -> None:
    pod = rendered(helm, ON)["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "livenessProbe", "readinessProbe", "resources"} <= container.keys()


def test_arguments_are_ones_that_the_command_takes(helm: Helm) -> None:
    settings = (ON, "feedback.maxVersions=7", "feedback.maxDeployments=8", "logLevel=debug")
    pod = rendered(helm, *settings)["StatefulSet"]["spec"]["template"]["spec"]
    command, *args = pod["containers"][0]["args"]
    assert command == feedback.name
    params = feedback.make_context("feedback", list(args)).params
    assert (params["max_versions"], params["max_deployments"], params["log_level"]) == (7, 8, "debug")
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert str(params["data"]).startswith(mount["mountPath"] + "/")
    assert params["port"] == pod["containers"][0]["ports"][0]["containerPort"]


def test_everything_finds_its_pods_and_the_operator_does_not_count_as_one(helm: Helm) -> None:
    on = rendered(helm, ON, "metrics.podMonitor.enabled=true", apis=(POD_MONITORS,))
    labels = on["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    operator = on["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        on["StatefulSet"]["spec"]["selector"]["matchLabels"],
        on["Service"]["spec"]["selector"],
        on["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        on["PodMonitor"]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= operator.items()
    assert not on["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_operator_gets_in_whoever_else_may(helm: Helm) -> None:
    on = rendered(helm, ON, "feedback.networkPolicy.from=[]")
    spec = on["NetworkPolicy"]["spec"]
    ((peer,),) = [rule["from"] for rule in spec["ingress"]]
    operator = on["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"].items() <= operator.items()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in spec, "nothing goes out"
    assert "NetworkPolicy" not in rendered(helm, ON, "feedback.networkPolicy.enabled=false")


def test_volume_is_one_that_stays_or_a_given_one_or_none(helm: Helm) -> None:
    def volume(*settings: str) -> tuple[dict[str, Any], Any]:
        on = rendered(helm, ON, *settings)
        (found,) = on["StatefulSet"]["spec"]["template"]["spec"]["volumes"]
        return found, on.get("PersistentVolumeClaim")

    used, made = volume("feedback.persistence.storageClass=fast", "feedback.persistence.size=2Gi")
    assert used["persistentVolumeClaim"] == {"claimName": made["metadata"]["name"]}
    assert made["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert made["spec"]["storageClassName"] == "fast"
    assert made["spec"]["resources"]["requests"]["storage"] == "2Gi"
    used, made = volume("feedback.persistence.existingClaim=mine")
    assert (used["persistentVolumeClaim"], made) == ({"claimName": "mine"}, None)
    used, made = volume("feedback.persistence.enabled=false")
    assert (used["emptyDir"], made) == ({"sizeLimit": "1Gi"}, None)


def test_name_leaves_room_for_what_kubernetes_appends(helm: Helm) -> None:
    long = "a" * 63
    (name,) = {
        thing["metadata"]["name"]
        for thing in objects(helm.render(ON, f"fullnameOverride={long}"))
        if thing["kind"] == "StatefulSet"
    }
    assert len(f"{name}-0123456789") <= 63
