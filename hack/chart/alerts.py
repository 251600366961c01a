"""Alert rules, as code: what a person should know of, each with its entry in docs/runbook.md.

A replica that takes over goes on telling of the same models. So what is said of a model is said without the labels of
the pod that says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

RUNBOOK = "docs/runbook.md"
MODEL = "{{ $labels.model_namespace }}/{{ $labels.modeldeployment }}"
"""The ModelDeployment that an alert is about, as Prometheus fills it in."""
REASON = "{{ $labels.reason }}"
GIVEN_UP = "Degraded|CandidateFailed|DeadlineExceeded"
"""Reasons of Ready for which Tidegate itself has rolled a version back."""


@dataclass(frozen=True)
class Alert:
    """One rule."""

    name: str
    expr: str
    severity: Literal["critical", "warning"]
    summary: str
    description: str
    lasts: str = ""
    """For how long it must hold before anybody is told; at once if empty."""

    @property
    def runbook(self) -> str:
        """Where it says what to do."""
        return f"{RUNBOOK}#{self.name.lower()}"

    @property
    def example(self) -> str:
        """The summary with names filled in."""
        return self.summary.replace(MODEL, "shop/churn").replace(REASON, "Degraded")

    def rule(self) -> dict[str, object]:
        """The rule as Prometheus reads it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasts} if self.lasts else {}),
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": self.description, "runbook": self.runbook},
        }


def _model(metric: str, **labels: str) -> str:
    """One series for each ModelDeployment that has such a series."""
    chosen = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"max by (model_namespace, modeldeployment) (tidegate_modeldeployment_{metric}{{{chosen}}})"


def _operator() -> Iterator[Alert]:
    """The operator, and the models that it looks after."""
    yield Alert(
        "TidegateOperatorDown",
        "absent(tidegate_leader == 1)",
        "critical",
        "No operator of Tidegate acts.",
        "Models go on serving, but nothing is rolled out, and a candidate that turns bad is not rolled back.",
        lasts="2m",
    )
    yield Alert(
        "TidegatePassesFail",
        'sum(rate(tidegate_reconcile_total{result="error"}[5m])) > 0',
        "warning",
        "Passes of the operator fail.",
        "For ten minutes passes over one or more ModelDeployments have ended with an error: what they need is not "
        "done. The operator's log names them.",
        lasts="10m",
    )
    yield Alert(
        "TidegatePassesLate",
        "max(tidegate_queue_lag_seconds) > 60",
        "warning",
        "The operator lags behind.",
        "The ModelDeployment that waits longest for its pass has waited for {{ $value | humanizeDuration }}.",
        lasts="5m",
    )
    starting = _model("reason", condition="Servable", reason="NoVersion")
    yield Alert(
        "TidegateModelNotServable",
        f"({_model('condition', condition='Servable')} == 0) unless {starting}",
        "critical",
        f"{MODEL} has nothing that answers requests.",
        "It had a version that served, and now no version that is ready has traffic.",
        lasts="1m",
    )
    yield Alert(
        "TidegateRolloutWithoutCounts",
        _model("reason", condition="Progressing", reason="NoCounts"),
        "warning",
        f"The rollout or experiment of {MODEL} is in doubt.",
        "For ten minutes its requests or rewards could not be counted. Weights stay as they are, and a version that "
        "turns bad is not noticed by its counts.",
        lasts="10m",
    )
    late, ended = (_model("reason", condition=each, reason="DeadlineExceeded") for each in ("Progressing", "Ready"))
    yield Alert(
        "TidegateRolloutPastDeadline",
        f"{late} unless {ended}",  # both say so once it was rolled back for that
        "warning",
        f"The rollout of {MODEL} is past its deadline.",
        "The candidate has not been proven as good as allowed, and keeps its share of the traffic until somebody "
        "decides.",
    )
    reasons = f'tidegate_modeldeployment_reason{{condition="Ready",reason=~"{GIVEN_UP}"}}'
    yield Alert(
        "TidegateCandidateRolledBack",
        f"max by (model_namespace, modeldeployment, reason) ({reasons})",
        "warning",
        f"The version that the spec of {MODEL} asks for was rolled back: {REASON}.",
        "The stable version has all requests. The rolled back one is not tried again until the spec changes or "
        "somebody asks for it.",
    )
    yield Alert(
        "TidegateLedgerNotKept",
        'sum(increase(tidegate_ledger_lines_total{result="lost"}[15m])) > 0',
        "warning",
        "Decisions are missing in the ledger.",
        "In the last 15 minutes lines could not be written. Rollouts go on; what they went by cannot be shown later.",
    )


def _feedback() -> Iterator[Alert]:
    """The service that counts rewards."""
    yield Alert(
        "TidegateFeedbackDown",
        "absent(tidegate_feedback_log_bytes)",
        "warning",
        "The service that counts rewards does not answer.",
        "Rewards are not taken, and rollouts with a guardrail on rewards hold.",
        lasts="5m",
    )


OPERATOR: Sequence[Alert] = tuple(_operator())
FEEDBACK: Sequence[Alert] = tuple(_feedback())


def text(name: str, alerts: Sequence[Alert]) -> str:
    """A file of rules as Prometheus reads it, which is also the spec of a PrometheusRule."""
    group = {"name": name, "rules": [alert.rule() for alert in alerts]}
    return yaml.safe_dump({"groups": [group]}, sort_keys=False, width=120)


def files() -> dict[str, str]:
    """The chart's files of rules, by name."""
    return {"operator.yaml": text("tidegate", OPERATOR), "feedback.yaml": text("tidegate-feedback", FEEDBACK)}
