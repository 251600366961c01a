"""The ledger in the chart."""

from __future__ import annotations

from typing import Any

import pytest

import helm as charts
from helm import Helm, objects
from tidegate.cli import run


@pytest.fixture(scope="module")
def helm() -> Helm:
    return charts.local()


def rendered(helm: Helm, *settings: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The operator's pod, and the claim that is made."""
    kinds = {each["kind"]: each for each in objects(helm.render(*settings))}
    pod: dict[str, Any] = kinds["Deployment"]["spec"]["template"]["spec"]
    return pod, kinds.get("PersistentVolumeClaim")


def options(pod: dict[str, Any]) -> dict[str, Any]:
    _, *args = pod["containers"][0]["args"]
    return run.make_context("run", args).params


def test_it_is_kept_in_the_pod_by_default_within_the_room_that_the_pod_has(helm: Helm) -> None:
    pod, claim = rendered(helm, "ledger.persistence.size=2Gi")
    (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
    assert volume == {"name": mount["name"], "emptyDir": {"sizeLimit": "2Gi"}}
    assert str(options(pod)["ledger"]).startswith(mount["mountPath"] + "/")
    assert options(pod)["ledger_size"] == 2 << 30, "a pod whose volume grows beyond its limit is evicted"
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    assert claim is None


def test_without_it_nothing_is_written_to_disk(helm: Helm) -> None:
    pod, claim = rendered(helm, "ledger.enabled=false", "ledger.persistence.enabled=true")
    assert options(pod)["ledger"] is None
    assert "volumes" not in pod
    assert "volumeMounts" not in pod["containers"][0]
    assert claim is None


def test_volume_is_one_that_stays_and_is_shared_or_a_given_one(helm: Helm) -> None:
    def used(*settings: str) -> tuple[str, dict[str, Any] | None]:
        pod, claim = rendered(helm, "ledger.persistence.enabled=true", *settings)
        (volume,) = pod["volumes"]
        return volume["persistentVolumeClaim"]["claimName"], claim

    name, claim = used("ledger.persistence.storageClass=shared")
    assert claim is not None
    assert claim["metadata"]["name"] == name
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "shared",
        "resources": {"requests": {"storage": "1Gi"}},
    }
    assert used("ledger.persistence.accessMode=ReadWriteOnce")[1]["spec"]["accessModes"] == ["ReadWriteOnce"]  # type: ignore[index]
    assert used("ledger.persistence.existingClaim=mine") == ("mine", None)


def test_it_stands_beside_the_other_volumes(helm: Helm) -> None:
    pod, _ = rendered(helm, "prometheus.token.secret=s", "prometheus.ca.secret=c")
    volumes = [volume["name"] for volume in pod["volumes"]]
    assert volumes == [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
    assert volumes == ["ledger", "prometheus-token", "prometheus-ca"]
