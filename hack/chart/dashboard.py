"""The Grafana dashboard, as code.

A version is known by its Revision: the operator tells each version's name, role and Revision, the gateway and Knative's
autoscaler tell what became of the Revision. The queries join the two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d

SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")

CONDITION = "tidegate_modeldeployment_condition"
MODEL = 'model_namespace="$namespace",modeldeployment="$modeldeployment"'
VERSIONS = f'group by (version, revision) (tidegate_version_weight_percent{{{MODEL},revision!=""}})'
"""1 for each version that has a Revision, whatever its role, which changes in the course of its life."""

GATEWAY = 'envoy_cluster_name=~"$namespace/.+"'
RATE = "[$__rate_interval]"
COUNTED = "At the gateway, Kourier's Envoy. A few of Knative's own probes are among them while a Route changes."


def by_version(rate: str, *more: str) -> str:
    """Sums what Kourier's Envoy counts, by version and the labels `more`. Its clusters are NAMESPACE/REVISION."""
    labels = ", ".join(("version", *more))
    named = f'label_replace({rate}, "revision", "$1", "envoy_cluster_name", ".+/(.+)")'
    return f"sum by ({labels}) ({named} * on (revision) group_left (version) {VERSIONS})"


def requests(codes: str = "") -> str:
    """Requests a second of each version, all or those whose status matches."""
    matching = f',envoy_response_code=~"{codes}"' if codes else ""
    return by_version(f"rate(envoy_cluster_upstream_rq{{{GATEWAY}{matching}}}{RATE})")


def replicas(gauge: str) -> str:
    """What the autoscaler says of each version's pods. Only one of its replicas speaks of a Revision at a time."""
    told = f'max by (kn_revision_name) ({gauge}{{k8s_namespace_name="$namespace"}})'
    named = f'label_replace({told}, "revision", "$1", "kn_revision_name", "(.+)")'
    return f"sum by (version) ({named} * on (revision) group_left (version) {VERSIONS})"


def latency(quantile: float) -> str:
    """Latency at the gateway in milliseconds, starts from zero included."""
    buckets = by_version(f"rate(envoy_cluster_upstream_rq_time_bucket{{{GATEWAY}}}{RATE})", "le")
    return f"histogram_quantile({quantile}, {buckets})"


def query(expr: str, legend: str) -> prometheus.Dataquery:
    """A query over the dashboard's time range."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).range()


def _place(panel: Any, title: str, description: str, width: int, height: int) -> Any:
    return panel.title(title).description(description).datasource(SOURCE).span(width).height(height)


def lines(title: str, description: str, unit: str, *queries: prometheus.Dataquery) -> Any:
    """A panel of lines over time."""
    legend = common.VizLegendOptions().display_mode(c.LegendDisplayMode.TABLE).placement(c.LegendPlacement.BOTTOM)
    panel = _place(timeseries.Panel(), title, description, 12, 8)
    panel = panel.unit(unit).min(0).fill_opacity(10).show_points(c.VisibilityMode.NEVER)
    panel = panel.legend(legend.show_legend(True).calcs(["lastNotNull", "max"]))
    panel = panel.tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI))
    for reference, each in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(each.ref_id(reference))
    return panel


def shares(title: str, description: str, one: prometheus.Dataquery) -> Any:
    """Shares of a hundred percent, one upon the other."""
    stacked = common.StackingConfig().mode(c.StackingMode.NORMAL).group("A")
    return lines(title, description, "percent", one).max(100).stacking(stacked).fill_opacity(60).line_width(0)


def number(title: str, description: str, expr: str, unit: str = "short") -> Any:
    """One number, as it is now."""
    panel = _place(stat.Panel(), title, description, 4, 4)
    shown = common.ReduceDataOptions().calcs(["lastNotNull"])
    return (
        panel.unit(unit)
        .reduce_options(shown)
        .color_mode(c.BigValueColorMode.NONE)
        .with_target(prometheus.Dataquery().ref_id("A").expr(expr).instant())
    )


def states(title: str, description: str, one: prometheus.Dataquery) -> Any:
    """Conditions over time. False is not red: it is as it should be for Progressing once a rollout is over."""
    colors = {"1": ("True", "green"), "0": ("False", "orange"), "-1": ("Unknown", "text")}
    mapping = d.ValueMap(options={k: d.ValueMappingResult(text=t, color=color) for k, (t, color) in colors.items()})
    panel = _place(statetimeline.Panel(), title, description, 24, 7)
    return panel.mappings([mapping]).show_value(c.VisibilityMode.NEVER).with_target(one.ref_id("A"))


def variable(name: str, label: str, metric: str, of: str) -> dashboard.QueryVariable:
    """A choice among the values of a metric's label."""
    asked = dashboard.QueryVariable(name).label(label).datasource(SOURCE)
    return (
        asked.query(f"label_values({metric}, {of})")
        .refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(d.VariableSort.ALPHABETICAL_ASC)
    )


def _model() -> Iterator[Any]:
    """One ModelDeployment."""
    yield shares(
        "Traffic set",
        "Percent of requests that the Route says it sends to each version.",
        query(
            f"sum by (version) (max by (version, revision) (tidegate_version_weight_percent{{{MODEL}}}))", "{{version}}"
        ),
    )
    yield shares(
        "Traffic seen",
        f"Percent of requests that each version got. {COUNTED}",
        query(f"100 * {requests()} / scalar(sum({requests()}))", "{{version}}"),
    )
    yield lines("Requests", f"Requests a second. {COUNTED}", "reqps", query(requests(), "{{version}}"))
    yield lines(
        "Errors",
        "Share of responses with a 5xx status, those that never reached a pod included.",
        "percentunit",
        query(f"({requests('5..')} or 0 * {requests()}) / {requests()}", "{{version}}"),
    )
    yield lines(
        "Latency",
        "At the gateway, starts from zero included: half, 95% and 99% of the requests took at most so long.",
        "ms",
        *(query(latency(q), f"{{{{version}}}} p{q * 100:.0f}") for q in (0.5, 0.95, 0.99)),
    )
    yield lines(
        "Replicas",
        "Pods that run, and pods that the autoscaler wants, of what answers the gateway: a transformer, if any.",
        "short",
        query(replicas("kn_revision_pods_count"), "{{version}} running"),
        query(replicas("kn_revision_pods_desired"), "{{version}} wanted"),
    )
    rewards, total = (f"tidegate_feedback_rewards{part}_total{{{MODEL}}}{RATE}" for part in ("", "_sum"))
    yield lines(
        "Reward",
        "Mean of the rewards that users gave to responses of each version, by the feedback service.",
        "short",
        query(f"sum by (version) (rate({total})) / sum by (version) (rate({rewards}))", "{{version}}"),
    )
    yield lines(
        "Rewards",
        "Rewards a second for responses of each version, whenever they were served.",
        "cps",
        query(f"sum by (version) (rate({rewards}))", "{{version}}"),
    )
    yield states(
        "Conditions",
        "Progressing is False while nothing is rolled out, and while a rollout waits for someone.",
        query(f"max by (condition) ({CONDITION}{{{MODEL}}})", "{{condition}}"),
    )


def _all() -> Iterator[Any]:
    """All ModelDeployments."""

    def many(condition: str, compared: str = "") -> str:
        """How many have such a condition."""
        each = f'max by (model_namespace, modeldeployment) ({CONDITION}{{condition="{condition}"}})'
        return f"count({each}{compared}) or vector(0)"

    yield number("ModelDeployments", "How many there are.", many("Ready"))
    yield number("Not servable", "How many have no version that could answer a request.", many("Servable", " < 1"))
    yield number("Not ready", "How many do not serve what their spec asks for, or not yet.", many("Ready", " < 1"))
    yield number("Rolling out", "How many move to another version.", many("Progressing", " == 1"))
    yield number("Operators that act", "One, except for seconds while another takes over.", "sum(tidegate_leader)")
    yield number(
        "Requests a second", COUNTED, f'sum(rate(envoy_cluster_upstream_rq{{envoy_cluster_name=~".+/.+"}}{RATE}))'
    )


def _operator() -> Iterator[Any]:
    """The operator itself."""
    yield lines(
        "Passes",
        "A pass looks at one ModelDeployment and writes what differs. One that fails is tried again.",
        "ops",
        query(f"sum by (result) (rate(tidegate_reconcile_total{RATE}))", "{{result}}"),
        query(f"sum(rate(tidegate_writes_total{RATE}))", "writes"),
    )
    yield lines(
        "Duration of passes",
        "Half and 95% of the passes took at most so long.",
        "s",
        *(
            query(
                f"histogram_quantile({q}, sum by (le) (rate(tidegate_reconcile_duration_seconds_bucket{RATE})))",
                f"p{q * 100:.0f}",
            )
            for q in (0.5, 0.95)
        ),
    )
    yield lines(
        "Queue",
        "ModelDeployments that are due for a pass. A replica that stands by has none.",
        "short",
        query("max(tidegate_queue_length)", "due"),
    )
    yield lines(
        "Lag",
        "How long the one that waits longest has been due. At 300 s the replica says that it is not alive.",
        "s",
        query("max(tidegate_queue_lag_seconds)", "longest"),
    )
    yield lines(
        "Memory",
        "Of each replica.",
        "bytes",
        query("process_resident_memory_bytes and on (instance) tidegate_build_info", "{{instance}}"),
    )
    yield lines(
        "CPU",
        "Cores that each replica uses.",
        "short",
        query(f"rate(process_cpu_seconds_total{RATE}) and on (instance) tidegate_build_info", "{{instance}}"),
    )


def build() -> d.Dashboard:
    """The dashboard."""
    board = (
        dashboard.Dashboard("Tidegate")
        .uid("tidegate")
        .description("Models served by Tidegate: traffic, errors and latency of each version, and the operator itself.")
        .tags(["tidegate", "inference"])
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(d.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(variable("namespace", "Namespace", CONDITION, "model_namespace"))
        .with_variable(
            variable(
                "modeldeployment", "ModelDeployment", f'{CONDITION}{{model_namespace="$namespace"}}', "modeldeployment"
            )
        )
    )
    ids = count(1)
    for title, panels in (
        ("All ModelDeployments", _all()),
        ("$namespace/$modeldeployment", _model()),
        ("Operator", _operator()),
    ):
        board = board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board = board.with_panel(panel.id(next(ids)))
    return board.build()


def text() -> str:
    """The dashboard as Grafana reads it."""
    return json.dumps(build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
