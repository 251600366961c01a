"""The chart's settings for the sources of counts."""

from __future__ import annotations

from typing import Any

import pytest

import helm as charts
from helm import Helm, objects
from tidegate.cli import run

PROMETHEUS = ("countsFrom=Prometheus", 'prometheus.url="https://prometheus.monitoring.svc:9090"')


@pytest.fixture(scope="module")
def helm() -> Helm:
    return charts.local()


def operator(helm: Helm, *settings: str) -> dict[str, Any]:
    (found,) = [each for each in objects(helm.render(*settings)) if each["kind"] == "Deployment"]
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def given(helm: Helm, *settings: str) -> dict[str, Any]:
    """The options that the operator's command takes from what is rendered."""
    _, *args = operator(helm, *settings)["containers"][0]["args"]
    known = [arg for arg in args if "-file=" not in arg]  # files are only there in the pod
    return run.make_context("run", known).params


def test_the_gateway_itself_is_asked_by_default(helm: Helm) -> None:
    options = given(helm)
    assert options["counts_from"] == "gateway"
    assert (options["gateway_namespace"], options["gateway_port"]) == ("kourier-system", 9000)
    assert options["prometheus_url"] == ""


def test_counts_from_prometheus(helm: Helm) -> None:
    options = given(helm, *PROMETHEUS, "prometheus.scrapeInterval=30", "prometheus.timeout=2", "gateway.namespace=gw")
    assert options["counts_from"] == "prometheus"
    assert options["prometheus_scrape_interval"] == 30
    assert options["prometheus_timeout"] == 2
    assert options["prometheus_matchers"] == 'namespace="gw"'
    assert options["prometheus_counters"] is None


def test_counters_of_another_gateway(helm: Helm) -> None:
    requests = r"istio_requests_total{reporter=\"source\",destination_service_name=\"{revision}\"}"
    options = given(
        helm,
        *PROMETHEUS,
        'prometheus.counters.targets="istio_build"',
        f'prometheus.counters.requests="{requests}"',
        'prometheus.counters.errors="errors"',
    )
    plain = requests.replace("\\", "")
    assert options["prometheus_counters"] == ("istio_build", plain, "errors", "")


def test_token_and_certificates_are_folders_of_secrets(helm: Helm) -> None:
    pod = operator(helm, "prometheus.token.secret=reader", "prometheus.ca.secret=ca", "prometheus.ca.key=root.pem")
    (container,) = pod["containers"]
    assert "--prometheus-token-file=/etc/tidegate/prometheus/token/token" in container["args"]
    assert "--prometheus-ca-file=/etc/tidegate/prometheus/ca/root.pem" in container["args"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"] if mount["name"] != "ledger"}
    volumes = {volume["name"]: volume["secret"] for volume in pod["volumes"] if volume["name"] != "ledger"}
    assert {name: mount["mountPath"] for name, mount in mounts.items()} == {
        "prometheus-token": "/etc/tidegate/prometheus/token",
        "prometheus-ca": "/etc/tidegate/prometheus/ca",
    }
    assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts.values())
    assert volumes == {
        "prometheus-token": {"secretName": "reader", "items": [{"key": "token", "path": "token"}]},
        "prometheus-ca": {"secretName": "ca", "items": [{"key": "root.pem", "path": "root.pem"}]},
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("countsFrom=Prometheus",), "prometheus.url: "),
        ((*PROMETHEUS, "prometheus.counters.targets=up"), "prometheus.counters.requests: "),
        (("countsFrom=Somewhere",), "at '/countsFrom': value must be one of 'Gateway', 'Prometheus'"),
        (("prometheus.timeout=9",), "at '/prometheus/timeout': maximum: got 9, want 4"),
    ],
)
def test_what_does_not_fit_together_is_refused(helm: Helm, settings: tuple[str, ...], told: str) -> None:
    assert told in helm.refusal(*settings)


def test_the_gateways_pods_are_listed_only_where_they_are_asked(helm: Helm) -> None:
    def roles(*settings: str) -> set[tuple[str, str]]:
        found = objects(helm.render('watchNamespaces=["a"]', *settings))
        return {(r["metadata"]["name"], r["metadata"]["namespace"]) for r in found if r["kind"] == "Role"}

    assert ("tidegate-gateway", "kourier-system") in roles()
    assert roles(*PROMETHEUS) == roles() - {("tidegate-gateway", "kourier-system")}
