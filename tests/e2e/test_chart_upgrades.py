"""The release under a served model: upgraded, uninstalled, installed again, for one namespace only; dashboard, alerts.

These tests change the testbed's own release and put it back: they must not run beside others.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.chart.alerts import FEEDBACK, OPERATOR

import helm as charts
from conftest import FAST, Model
from helm import CHART, NAMESPACE, RELEASE, Helm, HelmError
from live import Kubectl, wait_for
from tidegate.adapters.api import connected

pytestmark = pytest.mark.e2e

IMMEDIATE = {"strategy": "Immediate"}
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
KEPT = (
    "crd/modeldeployments.tidegate.dev",
    "crd/modelversions.tidegate.dev",
    f"clusterservingruntime/tidegate-sklearn-{VERSION.replace('.', '-')}",
)


class Release:
    """The testbed's release, with its own values and the description by which the testbed knows it."""

    def __init__(self, helm: Helm) -> None:
        self._helm = helm
        self.values: dict[str, Any] = {}
        self._description = ""
        self.look()

    def look(self) -> None:
        """Takes note of how the release is, unless it is gone. It may have been deployed anew since."""
        try:
            status = json.loads(self._helm("status", RELEASE, "--namespace", NAMESPACE, "--output", "json"))
        except HelmError:
            return
        self._description = status["info"]["description"]
        self.values = {name: value for name, value in status["config"].items() if name != "podAnnotations"}

    def put(self, chart: Path = CHART, **values: Any) -> None:
        """helm upgrade --install, and waits until the operator runs."""
        self.look()
        where = ("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "180s")
        about = ("--description", self._description, "--reset-values", "--values", "-")
        self._helm("upgrade", "--install", RELEASE, chart, *where, *about, input=json.dumps(self.values | values))

    def remove(self) -> None:
        """helm uninstall, and waits until the operator is gone."""
        self._helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "120s")


@pytest.fixture
def helm(testbed: dict[str, str]) -> Helm:
    path = charts.found()
    assert path, "the testbed has a helm"
    return Helm(path, testbed)


@pytest.fixture
def release(helm: Helm) -> Release:
    return Release(helm)


def identities(kubectl: Kubectl, names: tuple[str, ...]) -> dict[str, str]:
    return {name: kubectl("get", name, "-o", "jsonpath={.metadata.uid}") for name in names}


def logs(kubectl: Kubectl, namespace: str, instance: str) -> str:
    """What the operators of a release have said."""
    return kubectl("logs", "-n", namespace, "-l", f"app.kubernetes.io/instance={instance}", "--tail=-1")


def test_upgrade_changes_definitions_and_operator_and_fails_no_request(
    model: Model, faulty: Callable[..., Any], kubectl: Kubectl, release: Release, tmp_path: Path
) -> None:
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=IMMEDIATE)
    model.wait("Ready", "True")
    newer = tmp_path / "tidegate"
    shutil.copytree(CHART, newer)
    path = newer / "files" / "crds" / "modelversions.tidegate.dev.yaml"
    path.write_text(path.read_text().replace("- mver\n", "- mver\n    - chart-test\n"))
    before = identities(kubectl, KEPT)
    with model.load() as load:
        try:
            release.put(newer, podAnnotations={"touched": "yes"})
            kubectl("get", "chart-test", "-n", model.namespace)
            model.apply(model=faulty("v2"), scaling=FAST | {"min": 1}, rollout=IMMEDIATE)
            model.wait("Ready", "True/Serving")
        finally:
            release.put()
        model.apply(model=faulty("v3"), scaling=FAST | {"min": 1}, rollout=IMMEDIATE)
        model.wait("Ready", "True/Serving")
    assert load.failed == []
    assert {identity.split("-")[0] for identity in load.versions} == {"v1", "v2", "v3"}
    assert identities(kubectl, KEPT) == before, "changed where they are, not made anew"
    assert "chart-test" not in kubectl("get", "crd", "modelversions.tidegate.dev", "-o", "jsonpath={.spec.names}")
    print(f"\n{load.sent} requests during two upgrades, {len(load.failed)} failed, slowest {load.slowest:.2f} s")


def test_replica_that_stops_hands_over_at_once(kubectl: Kubectl) -> None:
    def holder() -> str:
        lease = ("get", "lease", "tidegate-operator", "-n", NAMESPACE)
        return kubectl(*lease, "-o", "jsonpath={.spec.holderIdentity}")

    kubectl("rollout", "status", "deployment/tidegate", "-n", NAMESPACE, "--timeout=60s")
    before = wait_for(holder, 30, "one acts")
    began = time.monotonic()
    kubectl("delete", "pod", before.rpartition("-")[0], "-n", NAMESPACE, "--wait=false")
    wait_for(lambda: holder() not in ("", before), 10, "another acts")
    print(f"\nanother acts after {time.monotonic() - began:.1f} s")
    kubectl("rollout", "status", "deployment/tidegate", "-n", NAMESPACE, "--timeout=60s")


def test_uninstalling_leaves_models_serving_and_installing_again_goes_on(
    model: Model, faulty: Callable[..., Any], kubectl: Kubectl, release: Release
) -> None:
    # one that starts from zero without the operator, too
    model.apply(model=faulty("v1"), scaling=FAST, rollout=IMMEDIATE)
    model.wait("Ready", "True")
    children = tuple(f"{kind}/{model.name}" for kind in ("mdep", "routes.serving.knative.dev"))

    def there() -> dict[str, str]:
        spaced = {
            name: kubectl("get", name, "-n", model.namespace, "-o", "jsonpath={.metadata.uid}") for name in children
        }
        return identities(kubectl, KEPT) | spaced

    before = there()
    wait_for(lambda: not model.pods(), 120, "no pod")
    began = time.monotonic()
    try:
        release.remove()
        assert (
            kubectl(
                "get",
                "deployments,clusterroles,roles,serviceaccounts",
                "-A",
                "-l",
                f"app.kubernetes.io/instance={RELEASE}",
                "-o",
                "name",
            )
            == ""
        )
        assert there() == before, "definitions, models, Routes and servers stay"
        status, version, _ = model.ask()
        assert (status, version) == (200, model.id_of("v1")), "started from zero, with no operator"
        with model.load() as load:
            time.sleep(3)
            release.put()
            away = time.monotonic() - began
            model.apply(model=faulty("v2"), scaling=FAST, rollout=IMMEDIATE)
            model.wait("Ready", "True/Serving")
    except BaseException:
        release.put()
        raise
    assert load.failed == []
    assert there() == before, "and were taken up, not made anew"
    assert {identity.split("-")[0] for identity in load.versions} == {"v1", "v2"}
    print(
        f"\n{load.sent} requests without and with an operator, {len(load.failed)} failed; it was away for {away:.0f} s"
    )


def test_operator_of_one_namespace_needs_no_more_than_its_roles(
    model: Model, faulty: Callable[..., Any], kubectl: Kubectl, release: Release, helm: Helm
) -> None:
    """Beside the testbed's release, which decides the same: so it is told by its metrics and its log."""
    name, namespace = "narrow", model.namespace
    settings = {
        "watchNamespaces": [namespace],
        "replicas": 1,
        "crds": {"install": False},
        "rbac": {"aggregate": False},
        "dashboards": {"enabled": False},
        "modelServers": {"sklearn": {"enabled": False}},
        "image": release.values["image"],
    }
    where = ("--namespace", namespace, "--wait", "--timeout", "120s")
    try:
        helm("install", name, CHART, *where, "--values", "-", input=json.dumps(settings))
        model.apply(model=faulty("v1"), scaling=FAST, rollout=IMMEDIATE)
        model.wait("Ready", "True")

        def passes() -> int:
            path = f"/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics"
            return sum(
                map(
                    float,
                    re.findall(r'^tidegate_reconcile_total\{result="ok"\} (\S+)', kubectl("get", "--raw", path), re.M),
                )
            )

        (pod,) = kubectl(
            "get",
            "pods",
            "-n",
            namespace,
            "-l",
            f"app.kubernetes.io/instance={name}",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ).split()
        wait_for(lambda: passes() > 0, 60, "passes by the operator of one namespace")
        said = logs(kubectl, namespace, name)
        assert [line for line in said.splitlines() if "orbidden" in line or "403" in line] == [], said
        holder = kubectl("get", "lease", "tidegate-operator", "-n", namespace, "-o", "jsonpath={.spec.holderIdentity}")
        assert holder.startswith(pod)
    finally:
        helm("uninstall", name, "--namespace", namespace, "--wait")


# --- the dashboard ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prometheus:
    url: str

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        """Values that a query gives now; those that are not numbers left out."""
        found = (float(series["value"][1]) for series in self.get("query", query=query)["result"])
        return [value for value in found if math.isfinite(value)]


def reward(model: Model) -> None:
    """Rewards both versions once."""
    where = "/api/v1/namespaces/tidegate-system/services/tidegate-feedback:http/proxy/v1/feedback"
    items = [
        {"namespace": model.namespace, "deployment": model.name, "version": model.id_of(version), "reward": 0.5}
        for version in ("v1", "v2")
    ]

    async def post() -> None:
        async with connected(model.kubectl.env["KUBECONFIG"]) as api:
            await api.call("POST", where, body={"items": items})

    asyncio.run(post())


def test_every_query_of_the_dashboard_has_data(
    model: Model, faulty: Callable[..., Any], testbed: dict[str, str]
) -> None:
    board = json.loads((CHART / "files" / "dashboards" / "tidegate.json").read_text())
    prometheus = Prometheus(testbed["PROMETHEUS_URL"])
    chosen = {"namespace": model.namespace, "modeldeployment": model.name, "__rate_interval": "30s"}

    def filled(text: str) -> str:
        return re.sub(r"\$(\w+)", lambda name: chosen.get(name[1], name[0]), text)

    rollout = {"guardrails": [], "steps": [{"weight": 50, "pause": {}}]}
    model.apply(model=faulty("v1"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait("Ready", "True")
    model.apply(model=faulty("v2", ERROR_RATE="0.5"), scaling=FAST | {"min": 1}, rollout=rollout)
    model.wait_weights(v1=50, v2=50)
    queries = {
        f"{panel['title']}: {target['expr']}": filled(target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    }
    with model.load() as load:
        wait_for(lambda: load.sent > 1000, 60, "1000 requests")

        def empty() -> list[str]:
            reward(model)
            return [name for name, query in queries.items() if not prometheus.values(query)]

        wait_for(lambda: not empty(), 90, "data for every query") if empty() else None
        for each in board["templating"]["list"]:
            if each["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"]).groups()
                assert chosen[each["name"]] in prometheus.get(f"label/{label}/values", **{"match[]": filled(metric)})

        # what they show is what happened
        by_title = {
            panel["title"]: filled(panel["targets"][0]["expr"]) for panel in board["panels"] if panel.get("targets")
        }

        def shown(title: str) -> dict[str, float]:
            return {
                series["metric"]["version"].split("-")[0]: float(series["value"][1])
                for series in prometheus.get("query", query=by_title[title])["result"]
            }

        def right() -> bool:
            assert shown("Traffic set") == {"v1": 50, "v2": 50}
            assert shown("Traffic seen") == {"v1": pytest.approx(50, abs=8), "v2": pytest.approx(50, abs=8)}
            assert shown("Errors") == {"v1": 0, "v2": pytest.approx(0.5, abs=0.1)}
            assert shown("Replicas") == {"v1": pytest.approx(1, abs=1), "v2": pytest.approx(1, abs=1)}
            return True

        wait_for(right, 90, "the dashboard shows the split and the errors")


# --- the alerts -------------------------------------------------------------------------------------------------------


def test_alerts_tell_of_a_rollout_that_goes_wrong_and_of_nothing_else(
    model: Model, faulty: Callable[..., Any], testbed: dict[str, str]
) -> None:
    """The expressions of the rules, whatever the time for which they must hold."""
    prometheus = Prometheus(testbed["PROMETHEUS_URL"])

    def firing() -> set[str]:
        """Alerts about this model, or about no model at all."""
        ours = {"model_namespace": model.namespace, "modeldeployment": model.name}
        return {
            alert.name
            for alert in (*OPERATOR, *FEEDBACK)
            for series in prometheus.get("query", query=alert.expr)["result"]
            if ours.items() <= series["metric"].items() or "modeldeployment" not in series["metric"]
        }

    def fires(*names: str) -> None:
        def so() -> bool:
            assert firing() == {*names}
            return True

        wait_for(so, 60, f"alerts: {', '.join(names) or 'none'}")

    unknown = {"name": "unknown", "query": {"promql": "tidegate_there_is_no_such_metric", "max": 1}}
    rollout = {"guardrails": [unknown], "steps": [{"weight": 50}], "deadline": "1m"}
    model.apply(model=faulty("v1"), scaling=FAST, rollout=rollout)
    model.wait("Ready", "True")
    told = 'tidegate_modeldeployment_reason{condition="Servable",reason="RouteReady"}'
    ours = f'model_namespace="{model.namespace}",modeldeployment="{model.name}"'
    wait_for(lambda: prometheus.values(told.replace("}", f",{ours}}}")), 60, "Prometheus knows of the model")
    fires()
    for half in ("tidegate_leader == 1", "tidegate_feedback_log_bytes", "tidegate_queue_lag_seconds"):
        assert prometheus.values(half), "an alert is silent because all is well, not because nothing is told"
    model.apply(model=faulty("v2"), scaling=FAST, rollout=rollout)
    model.wait("Progressing", "False/DeadlineExceeded")
    fires("TidegateRolloutPastDeadline")
    model.apply(model=faulty("v2"), scaling=FAST, rollout=rollout | {"onDeadline": "Rollback"})
    model.wait("Ready", "False/DeadlineExceeded")
    fires("TidegateCandidateRolledBack")
    model.apply(model=faulty("v1"), scaling=FAST, rollout=rollout)
    model.wait("Ready", "True")
    fires()


def test_with_counts_from_prometheus_a_healthy_version_is_promoted_and_a_failing_one_rolled_back(
    model: Model, faulty: Callable[..., Any], release: Release
) -> None:
    wide = {"guardrails": [{"name": "errors", "errors": {"maxRatio": 1.5, "maxIncrease": "5%"}}]}
    model.apply(model=faulty("v1"), scaling=FAST, rollout=wide)
    model.wait("Ready", "True/Serving")
    try:
        release.put(countsFrom="Prometheus")
        with model.load(threads=2, pause=0.03) as load:
            model.apply(model=faulty("v2"), scaling=FAST, rollout=wide)
            model.wait("Ready", "True/Serving", 300)
            assert model.weights() == {"v2": 100}
            assert not load.failed, load.failed[:3]
            model.apply(model=faulty("v3", ERROR_RATE="0.3"), scaling=FAST, rollout=wide)
            model.wait("Ready", "False/Degraded", 240)
            model.wait_weights(v2=100)
    finally:
        release.put()
    assert "responses failed, stable 0 of" in model.status["rejected"]["message"]
