"""A gateway's counters as Prometheus has them: raw samples with their own times, never rates.

`rate` and `increase` extrapolate; a sample is what a scrape saw, exactly. All samples of one target that have the same
time come from one scrape, and only those of its latest count: a series that has none at that time is gone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.core.rollout.counts import Ask
from tidegate.core.rollout.envoy import Garbage, Scrape, cluster, requests, whole

Target = tuple[str, str]
"""Labels job and instance, which Prometheus gives to everything that it scrapes."""


@dataclass(frozen=True)
class Series:
    """One series, with its latest samples."""

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, str]]
    """Time in seconds since the epoch, and value as it was written."""

    @property
    def target(self) -> Target:
        """What was scraped for it."""
        return self.labels.get("job", ""), self.labels.get("instance", "")

    def at(self, t: float) -> int | None:
        """The count of the scrape at exactly that time; None if it was not there. `Garbage` if it is no count."""
        return next((whole(value) for time, value in reversed(self.samples) if time == t), None)


@dataclass(frozen=True)
class Counters:
    """Where a gateway's counters are, as selectors of series in which `{namespace}` and `{revision}` stand for those of
    a version. Latency is a histogram in milliseconds with the label `le`."""

    targets: str
    """One series for each process of the gateway, whatever its value."""
    requests: str
    errors: str
    latency: str = ""
    """Empty if there is none."""


def parse(result: Any) -> list[Series]:
    """Reads the result of a query for a range of samples.

    Raises:
        Garbage: it is none.
    """
    try:
        return [Series(each["metric"], [(float(t), str(v)) for t, v in each["values"]]) for each in result]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Garbage("Prometheus answers with something that is no samples") from error


def scraped(targets: Iterable[Series]) -> dict[Target, float]:
    """When each target was last scraped, by a series that each has.

    Raises:
        Garbage: one gateway pod is there twice, and would be counted twice.
    """
    found: dict[Target, tuple[float, Mapping[str, str]]] = {}
    for series in targets:
        if not series.samples:
            continue
        for (job, instance), (_, other) in found.items():
            if instance == series.target[1]:
                differing = sorted(
                    name for name in other.keys() | series.labels.keys() if other.get(name) != series.labels.get(name)
                )
                raise Garbage(
                    f"the gateway's pod {instance} has its counters twice in Prometheus (labels that differ: "
                    f"{', '.join(differing) or 'none'}; job {job}); choose one by prometheus.matchers of the chart"
                )
        found[series.target] = (series.samples[-1][0], series.labels)
    return {target: t for target, (t, _) in found.items()}


def lost(up: Iterable[Series], times: Mapping[Target, float]) -> list[str]:
    """Instances of the gateway that Prometheus ought to scrape, and has no counters of."""
    return sorted(
        series.target[1]
        for series in up
        if series.samples and (series.target not in times or float(series.samples[-1][1]) != 1)
    )


# --- Envoy's own series: one query for all versions -------------------------------------------------------------------

_NAMES = "envoy_cluster_upstream_rq|envoy_cluster_upstream_rq_time_bucket|envoy_cluster_membership_total"


def selector(clusters: Collection[str], matchers: str = "") -> str:
    """Selects what Envoys tell of those clusters, and of themselves."""
    names = "|".join(re.escape(name).replace("\\", "\\\\") for name in sorted(clusters))
    more = f",{matchers}" if matchers else ""
    # a series without the label, which is the process's own, matches the empty name before the first bar
    return f'{{__name__=~"{_NAMES}|envoy_server_live|envoy_server_uptime",envoy_cluster_name=~"|{names}"{more}}}'


def envoys(found: Iterable[Series]) -> tuple[dict[Target, float], dict[str, Scrape]]:
    """What `selector` selects, as scrapes of each Envoy by its instance, and when each took place.

    Raises:
        Garbage: something is no count, or counted twice.
    """
    named: dict[str, list[Series]] = {}
    for series in found:
        named.setdefault(series.labels.get("__name__", ""), []).append(series)
    times = scraped(named.get("envoy_server_live", ()))
    uptimes: dict[Target, int] = {}
    codes: dict[Target, dict[str, dict[str, int]]] = {target: {} for target in times}
    buckets: dict[Target, dict[str, dict[float, int]]] = {target: {} for target in times}
    for name, all_series in named.items():
        for series in all_series:
            target = series.target
            if target not in times or (value := series.at(times[target])) is None:
                continue
            if name == "envoy_server_uptime":
                uptimes[target] = value
            if "envoy_cluster_name" not in series.labels:
                continue
            of = series.labels["envoy_cluster_name"]
            known = codes[target].setdefault(of, {})
            if name == "envoy_cluster_upstream_rq":
                known[series.labels["envoy_response_code"]] = value
            elif name == "envoy_cluster_upstream_rq_time_bucket":
                buckets[target].setdefault(of, {})[float(series.labels["le"])] = value
    for target in times:
        if target not in uptimes:
            raise Garbage(f"Prometheus has no envoy_server_uptime of {target[1]} beside its other series")
    return times, {
        "/".join(target): Scrape(
            uptimes[target], {of: requests(codes[target][of], buckets[target].get(of, {})) for of in codes[target]}
        )
        for target in times
    }


# --- other gateways: series by selectors of one's own -----------------------------------------------------------------


def filled(template: str, namespace: str, revision: str) -> str:
    """A selector for one version."""
    return template.replace("{namespace}", namespace).replace("{revision}", revision)


@dataclass(frozen=True)
class Found:
    """The series of one version."""

    requests: Sequence[Series]
    errors: Sequence[Series]
    latency: Sequence[Series]


def others(times: Mapping[Target, float], found: Mapping[tuple[str, str], Found]) -> dict[str, Scrape]:
    """Scrapes of each gateway process by its instance, from the series of versions by namespace and revision.

    A process without a series of a version has had no request for it. When the histograms were merged is not known:
    each scrape counts as later than the one before.

    Raises:
        Garbage: something is no count.
    """
    return {
        "/".join(target): Scrape(
            math.floor(t), {cluster(*version): _counts(target, t, series) for version, series in found.items()}
        )
        for target, t in times.items()
    }


def _counts(target: Target, t: float, found: Found) -> Any:
    def values(series: Iterable[Series]) -> list[tuple[Mapping[str, str], int]]:
        told = [(each.labels, each.at(t)) for each in series if each.target == target]
        return [(labels, value) for labels, value in told if value is not None]

    latency: dict[float, int] = {}
    for labels, value in values(found.latency):
        try:
            edge = float(labels["le"])
        except (KeyError, ValueError) as error:
            raise Garbage("the series for latency are not those of a histogram: they need a label le") from error
        latency[edge] = latency.get(edge, 0) + value
    everything, bad = (sum(value for _, value in values(series)) for series in (found.requests, found.errors))
    if bad > everything:
        raise Garbage("there are more errors than requests: do the selectors for both fit together?")
    return requests({"200": everything - bad, "500": bad}, latency)


def versions_of(asks: Iterable[Ask]) -> set[tuple[str, str]]:
    """Namespace and revision of everything that is asked for."""
    return {(ask.namespace, revision) for ask in asks for revision in ask.versions.values()}
