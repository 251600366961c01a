"""What the operator tells about itself, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from tidegate import __version__
from tidegate.core.decide import Decision
from tidegate.core.observed import Observed
from tidegate.runtime.queue import Key, KeyQueue

Labels = tuple[str, ...]
"""Values of a series' labels."""


class Metrics:
    """Metrics of the operator, in a registry of their own. All names but the process's begin with `tidegate_`.

    A model's namespace is the label `model_namespace`: `namespace` is what Prometheus calls that of the scraped pod.
    """

    def __init__(self, queue: KeyQueue) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Gauge("tidegate_build_info", "The operator's version; always 1.", ["version"], registry=self.registry).labels(
            __version__
        ).set(1)
        self._passes = Counter(
            "tidegate_reconcile", "Passes over a ModelDeployment, by result.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            "tidegate_reconcile_duration_seconds",
            "Time that a pass took.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self._writes = Counter(
            "tidegate_writes", "Calls that changed something in the cluster.", registry=self.registry
        )
        Gauge("tidegate_queue_length", "Keys that are due for a pass.", registry=self.registry).set_function(
            lambda: len(queue)
        )
        Gauge(
            "tidegate_queue_lag_seconds", "How long the longest waiting key has been due.", registry=self.registry
        ).set_function(queue.lag)
        self._looks = Counter(
            "tidegate_looks", "Looks at the counts of judged rollouts, by result.", ["result"], registry=self.registry
        )
        self._look_seconds = Histogram(
            "tidegate_look_duration_seconds",
            "Time that a look at the counts took.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )
        self._lines = Counter(
            "tidegate_ledger_lines",
            "Lines of the ledger, by result.",
            ["result"],
            registry=self.registry,
        )
        self.leader = Gauge("tidegate_leader", "1 while this replica is the one that acts.", registry=self.registry)
        self._conditions = Gauge(
            "tidegate_modeldeployment_condition",
            "Conditions of each ModelDeployment: 1 True, 0 False, -1 Unknown.",
            ["model_namespace", "modeldeployment", "condition"],
            registry=self.registry,
        )
        self._reasons = Gauge(
            "tidegate_modeldeployment_reason",
            "Always 1: the reason that each condition has now.",
            ["model_namespace", "modeldeployment", "condition", "reason"],
            registry=self.registry,
        )
        self._weights = Gauge(
            "tidegate_version_weight_percent",
            "Percent of requests that the Route sends to each version. The label revision joins with the gateway's.",
            ["model_namespace", "modeldeployment", "version", "role", "revision"],
            registry=self.registry,
        )
        self._shown: dict[Key, dict[Gauge, dict[Labels, int]]] = {}

    def passed(self, key: Key, observed: Observed, decision: Decision, seconds: float, writes: int) -> None:
        """A pass went well."""
        self._passes.labels("ok").inc()
        self._seconds.observe(seconds)
        self._writes.inc(writes)
        truth = {"True": 1, "False": 0, "Unknown": -1}
        conditions = decision.status.conditions
        self._show(
            key,
            {
                self._conditions: {(*key, c.type): truth[c.status] for c in conditions},
                self._reasons: {(*key, c.type, c.reason): 1 for c in conditions},
                self._weights: {(*key, v.id, v.role, v.revision or ""): v.weight for v in decision.status.versions},
            },
        )

    def looked(self, seconds: float, whole: bool) -> None:
        """The sources were looked at; `whole` if all could be read."""
        self._looks.labels("ok" if whole else "trouble").inc()
        self._look_seconds.observe(seconds)

    def kept(self, written: int, lost: int) -> None:
        """So many lines of the ledger were written, so many could not be."""
        self._lines.labels("written").inc(written)
        self._lines.labels("lost").inc(lost)

    def failed(self, key: Key, error: Exception) -> None:
        """A pass failed and is tried again."""
        self._passes.labels("error").inc()

    def gone(self, key: Key) -> None:
        """The ModelDeployment is gone, and its series with it."""
        self._passes.labels("gone").inc()
        self._show(key, {})
        del self._shown[key]

    def _show(self, key: Key, values: dict[Gauge, dict[Labels, int]]) -> None:
        """Sets the series of a key, and removes those that are no longer there: they would go on telling the past."""
        for gauge, shown in self._shown.get(key, {}).items():
            for labels in shown.keys() - values.get(gauge, {}).keys():
                gauge.remove(*labels)
        for gauge, wanted in values.items():
            for labels, value in wanted.items():
                gauge.labels(*labels).set(value)
        self._shown[key] = values
