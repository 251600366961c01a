"""The alert rules: they ask for what is really told, say what to do, and come with the chart where they are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.chart.alerts import FEEDBACK, OPERATOR, RUNBOOK, Alert

import helm as charts
from helm import CHART, RULES, Helm, objects
from pages import ROOT, text
from tidegate.adapters.telemetry import Metrics
from tidegate.feedback import service
from tidegate.feedback.journal import Journal
from tidegate.feedback.limits import Limits
from tidegate.feedback.store import Store
from tidegate.runtime.queue import Key, KeyQueue
from tidegate.runtime.reconcile import Reconciler
from world import NAMESPACE, World, container, drive

ALERTS = (*OPERATOR, *FEEDBACK)
FILES = sorted((CHART / "files" / "alerts").iterdir())


def series(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


# --- the metric that they go by ---------------------------------------------------------------------------------------


def test_each_condition_has_one_reason_at_a_time_and_none_once_its_model_is_gone() -> None:
    world, queue = World(), KeyQueue(clock=lambda: 0.0)
    metrics = Metrics(queue)
    operator = Reconciler(world, world, metrics, lambda: world.now, queue)

    def reasons() -> dict[str, str]:
        shown = series(metrics, "tidegate_modeldeployment_reason")
        assert set(shown.values()) <= {1.0}
        assert {(namespace, name) for _, namespace, name, _ in shown} <= {(NAMESPACE, "churn")}
        found = {condition: reason for condition, _, _, reason in shown}
        assert len(found) == len(shown), "one for each"
        return found

    world.submit(container("v1"))
    world.step(operator)
    assert reasons()["Servable"] == "NoVersion"
    world.run(30, operator)
    assert reasons() == {c.type: c.reason for c in world.status.conditions}
    assert reasons()["Servable"] == "RouteReady"
    del world.objects["ModelDeployment", "churn"]
    drive(operator.reconcile(Key(NAMESPACE, "churn")))
    assert reasons() == {}
    assert series(metrics, "tidegate_modeldeployment_condition") == {}
    assert series(metrics, "tidegate_version_weight_percent") == {}


def asked(expr: str, shown: set[tuple[str, str]]) -> bool:
    """Whether a condition has a reason that an expression asks for, before its `unless`, and none of those after it."""
    halves = [
        any((condition, reason) in shown for condition, reasons in found for reason in reasons.split("|"))
        for half in expr.split(" unless ")
        for found in [re.findall(r'_reason\{condition="(\w+)",reason=~?"([\w|]+)"\}', half)]
    ]
    return halves[0] and not any(halves[1:])


@pytest.mark.parametrize(
    ("what", "on_deadline", "alert"),
    [
        ({}, "Hold", ""),
        ({"source_trouble": "the gateway does not answer"}, "Hold", "TidegateRolloutWithoutCounts"),
        ({"rate": 0.0}, "Hold", "TidegateRolloutPastDeadline"),
        ({"rate": 0.0}, "Rollback", "TidegateCandidateRolledBack"),
        ({"errors": {"v2": 0.3}}, "Hold", "TidegateCandidateRolledBack"),
        ({"slow": {"v2"}}, "Hold", ""),
    ],
    ids=["healthy", "no counts", "no requests", "no requests, rolled back", "errors", "pods that do not come"],
)
def test_a_rollout_that_goes_wrong_has_the_reason_that_one_alert_asks_for(
    what: dict[str, Any], on_deadline: str, alert: str
) -> None:
    world, queue = World(), KeyQueue(clock=lambda: 0.0)
    metrics = Metrics(queue)
    operator = Reconciler(world, world, metrics, lambda: world.now, queue)
    rollout = {"deadline": "10m", "onDeadline": on_deadline}
    world.submit(container("v1", rollout=rollout))
    world.run(30, operator)
    world.submit(container("v2", rollout=rollout))
    for name, value in what.items():
        setattr(world, name, value)
    world.run(900, operator)
    shown = {(c, reason) for c, _, _, reason in series(metrics, "tidegate_modeldeployment_reason")}
    assert [each.name for each in OPERATOR if asked(each.expr, shown)] == [alert] * bool(alert)


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(tmp_path: Path) -> Iterator[set[str]]:
    """Names of the metrics that the operator and the feedback service tell."""
    with closing(Journal(tmp_path, Limits())) as journal:
        feedback = service.Metrics(Store(journal, compact_at=1 << 20))
        registries = (Metrics(KeyQueue(clock=lambda: 0.0)).registry, feedback.registry)
        families = [family for registry in registries for family in registry.collect()]
        yield {family.name + ("_total" if family.type == "counter" else "") for family in families}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_asks_for_metrics_that_are_told_and_has_an_entry_in_the_runbook(alert: Alert, told: set[str]) -> None:
    asked = set(re.findall(r"\btidegate_\w+", alert.expr))
    assert asked
    assert asked <= told
    assert f"### {alert.name}\n" in text(ROOT / RUNBOOK)
    assert alert.runbook == f"{RUNBOOK}#{alert.name.lower()}"
    for words in (alert.summary, alert.description):
        assert words.endswith(".")


@pytest.mark.parametrize("reason", re.findall(r'reason[=~]+"([^"]+)"', " ".join(alert.expr for alert in ALERTS)))
def test_reasons_are_those_that_conditions_have(reason: str) -> None:
    page = text(ROOT / "docs" / "concepts.md")
    for each in reason.split("|"):
        assert f"`{each}` |" in page, each


def test_labels_in_words_are_those_that_the_expression_leaves() -> None:
    for alert in ALERTS:
        kept = {name.strip() for inner in re.findall(r"by \(([^)]*)\)", alert.expr) for name in inner.split(",")}
        assert set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description)) <= kept, alert.name


# --- the chart --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helm() -> Helm:
    return charts.local()


def rules(helm: Helm, *settings: str, apis: tuple[str, ...] = (RULES,)) -> dict[str, dict[str, Any]]:
    """PrometheusRules by name."""
    found = objects(helm.render(*settings, apis=apis))
    return {thing["metadata"]["name"]: thing for thing in found if thing["kind"] == "PrometheusRule"}


def test_rules_come_only_where_they_are_wanted_and_known(helm: Helm) -> None:
    assert rules(helm) == {}
    assert rules(helm, "alerts.enabled=true", apis=()) == {}
    assert rules(helm, "alerts.enabled=true").keys() == {"tidegate"}
    assert rules(helm, "alerts.enabled=true", "feedback.enabled=true").keys() == {"tidegate", "tidegate-feedback"}


def test_rules_are_the_files_as_they_are(helm: Helm) -> None:
    shown = rules(helm, "alerts.enabled=true", "feedback.enabled=true", 'alerts.labels={"release":"monitoring"}')
    specs = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
    assert {"operator": shown["tidegate"]["spec"], "feedback": shown["tidegate-feedback"]["spec"]} == specs
    for rule in shown.values():
        assert rule["metadata"]["labels"]["release"] == "monitoring"
        assert rule["metadata"]["namespace"] == charts.NAMESPACE
    listed = [rule["alert"] for spec in specs.values() for group in spec["groups"] for rule in group["rules"]]
    assert sorted(listed) == sorted(alert.name for alert in ALERTS)
