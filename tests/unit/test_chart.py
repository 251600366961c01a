"""The chart as text: what is generated has not drifted, and what it renders is what it should."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.chart import generated

import helm as charts
from helm import CHART, KSERVE_RUNTIMES, POD_MONITORS, Helm, objects
from live import ROOT
from tidegate.api import crds
from tidegate.cli import run


@pytest.fixture(scope="module")
def helm() -> Helm:
    return charts.local()


def rendered(helm: Helm, *settings: str, **how: Any) -> dict[str, list[dict[str, Any]]]:
    """Objects by kind."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for thing in objects(helm.render(*settings, **how)):
        kinds.setdefault(thing["kind"], []).append(thing)
    return kinds


def operator(kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The operator's pod template."""
    (deployment,) = kinds["Deployment"]
    template: dict[str, Any] = deployment["spec"]["template"]
    return template


# --- what is generated ------------------------------------------------------------------------------------------------


def test_generated_files_are_as_they_would_be_written_now() -> None:
    wanted = generated()
    drifted = [str(path) for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    assert drifted == [], "run `make crds`"
    assert set((CHART / "files").rglob("*.*")) <= wanted.keys(), "and nothing is left over"


def test_chart_has_the_definitions_of_the_repository() -> None:
    folders = (ROOT / "crds", CHART / "files" / "crds")
    for folder in folders:
        assert {path.name: path.read_text() for path in folder.iterdir()} == crds.files()


def schema_nodes(node: dict[str, Any], values: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that lists its properties, with the values that it is about."""
    yield path, node
    assert node["properties"].keys() - {"global"} == values.keys(), path
    for name, child in node["properties"].items():
        if "properties" in child:
            yield from schema_nodes(child, values[name], f"{path}.{name}")


def test_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, node in schema_nodes(schema, values):
        assert node["additionalProperties"] is False, path
        for name, child in node["properties"].items():
            assert child["description"].endswith("."), f"{path}.{name}"


def test_dashboard_shows_what_each_panel_says() -> None:
    board = json.loads((CHART / "files" / "dashboards" / "tidegate.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


# --- what is rendered -------------------------------------------------------------------------------------------------


def test_lint_finds_nothing(helm: Helm) -> None:
    helm("lint", "--strict", CHART, "--kube-version", charts.KUBERNETES)


def test_default_needs_nothing_but_kubernetes(helm: Helm) -> None:
    kinds = rendered(helm)
    assert kinds.keys() == {
        *("ClusterRole", "ClusterRoleBinding", "ConfigMap", "CustomResourceDefinition", "Deployment"),
        *("PodDisruptionBudget", "Role", "RoleBinding", "ServiceAccount"),
    }


def test_definitions_stay_and_are_otherwise_the_generated_ones(helm: Helm) -> None:
    shown = {crd["metadata"]["name"]: crd for crd in rendered(helm)["CustomResourceDefinition"]}
    for definition in crds.definitions():
        crd = shown.pop(definition["metadata"]["name"])
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == definition
    assert shown == {}
    assert "CustomResourceDefinition" not in rendered(helm, "crds.install=false")


def test_pod_is_restricted(helm: Helm) -> None:
    pod = operator(rendered(helm))["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [volume["name"] for volume in pod["volumes"]] == ["ledger"], "nothing else is written to disk"
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_arguments_are_ones_that_the_command_takes(helm: Helm) -> None:
    kinds = rendered(helm, 'watchNamespaces=["a","b"]', "logLevel=debug", namespace="elsewhere")
    command, *args = operator(kinds)["spec"]["containers"][0]["args"]
    assert command == run.name
    context = run.make_context("run", list(args))
    assert context.params["namespaces"] == ("a", "b")
    assert context.params["lease_namespace"] == "elsewhere"
    assert context.params["log_level"] == "debug"


def rules(*roles: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Group, resource and verb of everything that roles allow."""
    for role in roles:
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield group, resource, verb


def test_no_rule_is_wide_and_each_says_what_for(helm: Helm) -> None:
    kinds = rendered(helm)
    for group, resource, verb in rules(*kinds["ClusterRole"], *kinds["Role"]):
        assert "*" not in (group, resource, verb)
        assert resource not in ("secrets", "services", "deployments")
        assert resource != "pods" or verb in ("list", "watch")
        assert resource != "configmaps" or verb == "get"
    lines = helm.render().splitlines()
    uses = [before for before, line in pairwise(lines) if line.startswith("- apiGroups:")]
    assert len(uses) == sum(len(role["rules"]) for role in (*kinds["ClusterRole"], *kinds["Role"]))
    assert all(line.startswith("# ") for line in uses), "a comment above each rule"


def test_page_lists_exactly_the_rules(helm: Helm) -> None:
    page = (CHART / "README.md").read_text()
    section = page[page.index("## What the operator may do") : page.index("## Metrics")]
    listed = set()
    for row in re.findall(r"^\| `.*$", section, re.MULTILINE):
        what, verbs, _ = (cell.strip() for cell in row.strip("|").split("|"))
        kinds, _, _ = what.partition(", only")
        listed |= {(kind, verb) for kind in re.findall(r"`(\S+)`", kinds) for verb in verbs.split(", ")}
    shown = rendered(helm, 'watchNamespaces=["a"]', "rbac.aggregate=false")
    assert listed == {(resource, verb) for _, resource, verb in rules(*shown["ClusterRole"], *shown["Role"])}


def test_some_namespaces_only(helm: Helm) -> None:
    kinds = rendered(helm, 'watchNamespaces=["a","b"]', "rbac.aggregate=false")
    (cluster,) = kinds["ClusterRole"]
    assert {resource for _, resource, _ in rules(cluster)} == {
        "clusterservingruntimes",
        "customresourcedefinitions",
        "configmaps",
        "namespaces",
    }
    everywhere = list(rendered(helm, "rbac.aggregate=false")["ClusterRole"])
    names = {("", "namespaces", verb) for verb in ("list", "watch")}
    for namespace in ("a", "b"):
        (role,) = [role for role in kinds["Role"] if role["metadata"]["namespace"] == namespace]
        assert {*rules(role), *rules(cluster)} == {*rules(*everywhere)} | names
        (binding,) = [each for each in kinds["RoleBinding"] if each["metadata"]["namespace"] == namespace]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tidegate", "namespace": "tidegate-system"}]


def test_pod_monitor_only_where_it_is_wanted_and_known(helm: Helm) -> None:
    assert "PodMonitor" not in rendered(helm, apis=(POD_MONITORS,))
    assert "PodMonitor" not in rendered(helm, "metrics.podMonitor.enabled=true")
    (monitor,) = rendered(helm, "metrics.podMonitor.enabled=true", apis=(POD_MONITORS,))["PodMonitor"]
    template = operator(rendered(helm))
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in [
        p["name"] for p in template["spec"]["containers"][0]["ports"]
    ]


def test_scrape_annotations_can_be_left_out(helm: Helm) -> None:
    def scraped(*settings: str) -> dict[str, str]:
        found = operator(rendered(helm, *settings))["metadata"]["annotations"]
        return {name: value for name, value in found.items() if name.startswith("prometheus.io/")}

    assert scraped() == {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics"}
    assert scraped("metrics.scrapeAnnotations=false") == {}


def test_dashboard_comes_as_it_is_in_a_labelled_config_map(helm: Helm) -> None:
    (found,) = rendered(helm)["ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {"tidegate.json": (CHART / "files" / "dashboards" / "tidegate.json").read_text()}
    assert "ConfigMap" not in rendered(helm, "dashboards.enabled=false")


def test_model_server_of_each_release_stands_beside_the_earlier_ones(helm: Helm, tmp_path: Path) -> None:
    def runtime(version: str) -> dict[str, Any]:
        chart = tmp_path / version
        shutil.copytree(CHART, chart)
        page = yaml.safe_load((chart / "Chart.yaml").read_text())
        (chart / "Chart.yaml").write_text(yaml.safe_dump(page | {"version": version, "appVersion": version}))
        (found,) = rendered(helm, chart=chart, apis=(KSERVE_RUNTIMES,))["ClusterServingRuntime"]
        return found

    releases = [runtime(version) for version in ("0.1.0", "0.1.1", "0.2.0", "1.0.0")]
    assert len({each["metadata"]["name"] for each in releases}) == len(releases)
    formats = [each["spec"]["supportedModelFormats"] for each in releases]
    priorities = [only["priority"] for (only,) in formats]
    assert priorities == sorted(set(priorities)), "KServe wants them to differ, and the newest is to be picked"
    assert min(priorities) > 1, "above KServe's own"
    for version, each in zip(("0.1.0", "0.1.1", "0.2.0", "1.0.0"), releases, strict=True):
        (container,) = each["spec"]["containers"]
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "tidegate"
        assert container["args"] == ["--model_name={{.Name}}", "--model_dir=/mnt/models"]
        assert container["image"] == f"tidegate/sklearn:{version}"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("replicas=-1", "at '/replicas': minimum: got -1, want 0"),
        ("replica=1", "additional properties 'replica' not allowed"),
        ("image.tagg=1", "at '/image': additional properties 'tagg' not allowed"),
        ("image.repository=a b", "at '/image/repository': 'a b' does not match pattern"),
        ("logLevel=loud", "at '/logLevel': value must be one of 'debug', 'info', 'warning'"),
        ("resources.requets.cpu=1", "at '/resources': additional properties 'requets' not allowed"),
        ('watchNamespaces=["Not_A_Name"]', "at '/watchNamespaces/0': 'Not_A_Name' does not match pattern"),
        ('watchNamespaces=["a","a"]', "at '/watchNamespaces': items at 0 and 1 are equal"),
        ("metrics.podMonitor.interval=often", "at '/metrics/podMonitor/interval': 'often' does not match pattern"),
        ('imagePullSecrets=["registry"]', "at '/imagePullSecrets/0': got string, want object"),
        ("feedback.maxVersions=0", "at '/feedback/maxVersions': minimum"),
        ("feedback.persistence.size=lots", "at '/feedback/persistence/size': 'lots' does not match pattern"),
        ("alerts.labels.release=1", "at '/alerts/labels/release': got number, want string"),
        ("ledger.persistence.accessMode=Any", "at '/ledger/persistence/accessMode': value must be one of"),
        ("feedback.replicas=2", "additional properties 'replicas' not allowed"),
    ],
)
def test_wrong_value_is_refused_and_named(helm: Helm, setting: str, told: str) -> None:
    assert told in helm.refusal(setting)
