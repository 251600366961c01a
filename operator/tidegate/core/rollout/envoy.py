"""What a gateway's Envoy tells of the Revisions behind it, read from its statistics in Prometheus' text format.

A response counts once, by the code that the user got: `cluster.<namespace>/<revision>.upstream_rq_<code>` has the
final answer of each request, those that Envoy made itself when no pod answered (503), a pod reset (503) or took too
long (504) among them; an attempt that was retried is counted elsewhere. A client that hung up before the answer is
in none of them.

Counters are those of the moment. Histograms are not: Envoy merges them at intervals (`stats_flush_interval`, 5 s by
default) and sets `server.uptime` as it ends, which is how one knows that a merge took place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

from tidegate.core.rollout.counts import Requests

T = TypeVar("T")


class Garbage(Exception):
    """A text that is not what an Envoy tells."""


@dataclass(frozen=True)
class Scrape:
    """What one Envoy told."""

    uptime: int
    """Seconds that it has been up, as of the latest merge of its histograms."""
    clusters: Mapping[str, Requests] = field(default_factory=dict)
    """By `<namespace>/<revision>`; one that it routes to and that has had no request has zeros and no latency."""


def cluster(namespace: str, revision: str) -> str:
    """The name that Kourier gives to the cluster of a Revision."""
    return f"{namespace}/{revision}"


def selection(clusters: Iterable[str]) -> str:
    """The regular expression for `filter=` that leaves what `read` needs of those clusters, and nothing else."""
    names = "|".join(re.escape(name).replace(r"\-", "-") for name in sorted(set(clusters)))
    return rf"^server\.(live|uptime)$|^cluster\.({names})\.(upstream_rq_([0-9]+|time)|membership_total)$"


def portions(wanted: Mapping[T, Collection[str]], limit: int = 24_000) -> Iterator[Sequence[T]]:
    """Parts of `wanted` whose selections fit into a URL each: Envoy takes 60 KiB of headers.

    What belongs to one key stays together, so that it comes from one moment.
    """
    part: list[T] = []
    length = 0
    for key, clusters in wanted.items():
        size = sum(len(quote(name, safe="")) + 3 for name in clusters)
        if part and length + size > limit:
            yield part
            part, length = [], 0
        part.append(key)
        length += size
    if part:
        yield part


_LINE = re.compile(
    r"envoy_(?:cluster_(upstream_rq|upstream_rq_time_bucket|membership_total)|server_(live|uptime))\{(.*)\} (\S+)"
)
_OTHER = re.compile(r"[a-zA-Z_]\w*(\{.*\})? \S+")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read(text: str) -> Scrape:
    """Reads the answer to `GET /stats/prometheus?usedonly&filter=<selection>`.

    Raises:
        Garbage: it is no such answer, not whole, or has a number that cannot be a count.
    """
    if not text.endswith("\n"):
        raise Garbage("it answers with nothing" if not text else "its answer ends in the middle of a line")
    codes: dict[str, dict[str, int]] = {}
    buckets: dict[str, dict[float, int]] = {}
    server: dict[str, int] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            if _OTHER.fullmatch(line):
                continue  # the sum of a histogram, or what a gateway that knows no filter tells besides
            raise Garbage(f"it answers with something that is not Envoy's statistics: {line[:80]!r}")
        metric, of_server, labels, told = found.groups()
        value = whole(told)
        if of_server:
            server[of_server] = value
            continue
        named = dict(_LABEL.findall(labels))
        try:
            name = named["envoy_cluster_name"]
            known = codes.setdefault(name, {})
            if metric == "upstream_rq":
                known[named["envoy_response_code"]] = value
            elif metric == "upstream_rq_time_bucket":
                buckets.setdefault(name, {})[float(named["le"])] = value
        except (KeyError, ValueError) as error:
            raise Garbage(f"its statistics have other labels than Envoy's: {line[:120]!r}") from error
    if server.get("live") != 1 or "uptime" not in server:
        raise Garbage("it does not say that it is live; it answers, but its statistics do not")
    return Scrape(server["uptime"], {name: requests(codes[name], buckets.get(name, {})) for name in codes})


def requests(codes: Mapping[str, int], latency: Mapping[float, int]) -> Requests:
    """Counts by status code, put together. Errors are those of 500 and above."""
    errors = sum(count for code, count in codes.items() if code.startswith("5"))
    return Requests(sum(codes.values()), errors, dict(sorted(latency.items())))


def whole(told: str) -> int:
    """A count.

    Raises:
        Garbage: it is none: NaN, infinite, negative or a fraction.
    """
    try:
        value = float(told)
    except ValueError:
        raise Garbage(f"{told[:40]!r} is not a number") from None
    if not math.isfinite(value) or value < 0 or value != int(value):
        raise Garbage(f"{told} is not a count")
    return int(value)


def edges_of(scrapes: Iterable[Mapping[str, Requests]]) -> Sequence[float]:
    """The upper edges of all histograms' buckets, in milliseconds; none if nothing has been timed yet.

    Raises:
        Garbage: there are histograms with different edges.
    """
    known = {frozenset(part.latency) for clusters in scrapes for part in clusters.values() if part.latency}
    if len(known) > 1:
        raise Garbage("the gateway's pods have latency histograms with different buckets: give them all the same")
    return sorted(next(iter(known), ()))


def total(parts: Iterable[Requests], edges: Iterable[float]) -> Requests:
    """The sum over gateway pods, at those edges. A pod without a histogram has timed nothing yet."""
    parts = tuple(parts)
    latency = {edge: sum(part.latency.get(edge, 0) for part in parts) for edge in edges}
    return Requests(sum(part.requests for part in parts), sum(part.errors for part in parts), latency)
