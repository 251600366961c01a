"""Which latency counts as slow: an edge of the histogram, from what the stable version does."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, log

TARGET = 0.05
"""Share of the stable version's responses that should be slow."""
ENOUGH = 300
"""Responses of the stable version that are needed to choose."""
_HOPELESS = 0.95


def edge_written(edge: float) -> float | None:
    """An edge for JSON, which has no infinity."""
    return edge if edge < inf else None


def edge_read(edge: float | None) -> float:
    """An edge from JSON, as `edge_written` left it."""
    return inf if edge is None else float(edge)


def choose_edge(histogram: Mapping[float, float], rho: float, delta: float) -> float | None:
    """Edge in milliseconds whose slow share is closest to TARGET by ratio; None before ENOUGH responses.

    `histogram` has the stable version's cumulative counts by edge, the last of which is infinite. An edge beyond which
    so many are slow that a candidate could never be worse than allowed is taken only if there is no other; one beyond
    which nothing was slow, only if no usable edge has any slow responses, and then the lowest.
    """
    total = histogram.get(inf, 0)
    if total < ENOUGH:
        return None
    slow = {edge: (total - count) / total for edge, count in sorted(histogram.items()) if edge != inf}
    usable = {edge: share for edge, share in slow.items() if rho * share + delta < _HOPELESS}
    some = {edge: share for edge, share in usable.items() if share > 0.0}
    if some:
        return min(some, key=lambda edge: abs(log(some[edge] / TARGET)))
    return min(usable or [max(slow)]) if slow else None
