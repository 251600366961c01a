"""Traces: counts of a stable version and a canary, as JSON lines, one a scrape, and the verdict on each.

Traces that have the same kinds of counts are judged side by side, line by line, as rows of one `Judges`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tidegate.core.rollout.evidence import Bools, Floats
from tidegate.core.rollout.guards import Guard, Settings, Verdict
from tidegate.core.rollout.judge import Judges, Windows

ARMS = ("stable", "canary")


class BadTrace(Exception):
    """A file that is no trace; the message says where and why."""


@dataclass(frozen=True)
class Trace:
    """The scrapes of one file. In all arrays the stable version comes first, the canary second."""

    path: str
    t: Floats
    """Seconds, rising, shape (scrapes,)."""
    requests: Floats
    """Cumulative, shape (scrapes, 2); so are the others."""
    errors: Floats
    weight: Floats
    """Share of the canary that was asked for, in [0, 1], shape (scrapes,)."""
    edges: tuple[float, ...] = ()
    latency: Floats | None = None
    """Shape (scrapes, 2, edges)."""
    rewards: Floats | None = None
    """Count, sum, sum of squares; shape (scrapes, 2, 3)."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Traces of one kind can be judged side by side."""
        return (self.edges, self.rewards is not None)


@dataclass(frozen=True)
class Options:
    """Error rates and margins."""

    alpha: float = 0.01
    beta: float = 0.05
    rho: float = 1.5
    delta: float = 0.005
    latency_rho: float = 1.25
    latency_delta: float = 0.01
    edge: float | None = None
    drop: float = 0.03

    def settings(self, trace: Trace) -> Settings:
        """A guardrail for each kind of count that the trace has."""
        guards = [Guard.errors(rho=self.rho, delta=self.delta)]
        if trace.latency is not None:
            guards.append(Guard.latency(rho=self.latency_rho, delta=self.latency_delta, edge=self.edge))
        if trace.rewards is not None:
            guards.append(Guard.reward(drop=self.drop))
        return Settings(tuple(guards), alpha=self.alpha, beta=self.beta)


@dataclass(frozen=True)
class Outcome:
    """What the judge says of one trace."""

    trace: str
    verdict: Verdict
    at: float | None
    """When it was first known, in the trace's seconds."""


def read(path: Path) -> Trace:
    """Reads one file. `BadTrace` with the line if it is no trace."""
    rows: list[tuple[float, float, list[list[float]]]] = []
    edges: tuple[float, ...] | None = None
    rewarded: bool | None = None
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007 - an error says which line
                if not line.strip():
                    continue
                scrape = json.loads(line)
                versions = scrape["versions"]
                if set(versions) != set(ARMS):
                    raise ValueError(f"the versions are {', '.join(sorted(versions))}, not stable and canary")
                both = [versions[arm] for arm in ARMS]
                if edges is None:
                    edges, rewarded = _edges(both), all("reward_count" in counts for counts in both)
                counts = [_counts(version, edges, bool(rewarded)) for version in both]
                t = float(scrape["t"])
                if rows and t < rows[-1][0]:
                    raise ValueError(f"time goes back, from {rows[-1][0]:g} to {t:g}")
                rows.append((t, _share(scrape.get("weights")), counts))
    except OSError as error:
        raise BadTrace(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path}: not a text file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BadTrace(f"{path}, line {number}: {told}") from error
    if not rows:
        raise BadTrace(f"{path}: the file is empty")
    edges = edges or ()
    table = np.array([counts for _, _, counts in rows])
    if not np.isfinite(table).all() or (table < 0).any():
        raise BadTrace(f"{path}: there is a count that is negative or no finite number")
    return Trace(
        path=str(path),
        t=np.array([t for t, _, _ in rows]),
        requests=table[:, :, 0],
        errors=table[:, :, 1],
        weight=np.array([share for _, share, _ in rows]),
        edges=edges,
        latency=table[:, :, 2 : 2 + len(edges)] if edges else None,
        rewards=table[:, :, 2 + len(edges) :] if rewarded else None,
    )


def _edges(both: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Edges of the latency histogram that both versions have, the last infinite; none where there is none."""
    if not all(counts.get("latency_ms") for counts in both):
        return ()
    edges = tuple(sorted(float(edge) for edge in both[0]["latency_ms"]))
    if edges[-1] != math.inf:
        raise ValueError('the histogram has no edge "+Inf"')
    return edges


def _counts(version: Mapping[str, Any], edges: tuple[float, ...], rewarded: bool) -> list[float]:
    out = [float(version["requests"]), float(version["errors"])]
    if edges:
        histogram = sorted((float(edge), float(count)) for edge, count in version["latency_ms"].items())
        if tuple(edge for edge, _ in histogram) != edges:
            raise ValueError("the histogram has other edges than before")
        out += [count for _, count in histogram]
    if rewarded:
        out += [float(version[key]) for key in ("reward_count", "reward_sum", "reward_sumsq")]
    return out


def _share(weights: Mapping[str, Any] | None) -> float:
    """Share of the canary; 0, for unknown, where there are no weights."""
    if not weights:
        return 0.0
    stable, canary = (float(weights.get(arm, 0.0)) for arm in ARMS)
    return canary / (stable + canary) if stable + canary > 0 else 0.0


def judge(traces: Iterable[Trace], options: Options) -> Iterator[Outcome]:
    """The verdict on each trace, in no particular order."""
    ordered = sorted(traces, key=lambda trace: repr(trace.kind))
    for _, alike in groupby(ordered, key=lambda trace: repr(trace.kind)):
        yield from _together(list(alike), options)


def _together(traces: list[Trace], options: Options) -> Iterator[Outcome]:
    """Traces of one kind, judged line by line."""
    rows, longest = len(traces), max(len(trace.t) for trace in traces)
    whole = [_padded(trace, longest) for trace in traces]
    lengths = np.array([len(trace.t) for trace in traces])
    t = np.stack([trace.t for trace in whole])
    requests, errors = (np.stack([getattr(trace, name) for trace in whole]) for name in ("requests", "errors"))
    weight = np.stack([trace.weight for trace in whole])
    latency, rewards = (_stacked([getattr(trace, name) for trace in whole]) for name in ("latency", "rewards"))

    judges = Judges(options.settings(traces[0]), rows)
    in_force = weight[:, 0].copy()
    degraded_at, healthy_at = np.full(rows, np.nan), np.full(rows, np.nan)
    for line in range(1, longest):
        on: Bools = (line < lengths) & (t[:, line] > t[:, line - 1])
        window: dict[str, Any] = {}
        for name, counts in (("requests", requests), ("errors", errors), ("latency", latency), ("rewards", rewards)):
            if counts is None:
                continue
            new = counts[:, line] - counts[:, line - 1]
            # a counter that fell was reset; sums of floating numbers may fall by a rounding error
            slack = -1e-6 if name == "rewards" else 0.0
            on = on & (new >= slack).reshape(rows, -1).all(axis=1)
            window[name] = new
        changed = on & (weight[:, line] != in_force)
        if changed.any():
            judges.weight_changed(changed)
        share = np.where(on & ~changed, weight[:, line], 0.0)
        in_force = np.where(on, weight[:, line], in_force)
        judges.observe(
            Windows(
                dt=t[:, line] - t[:, line - 1],
                counted=on,
                rewarded=on if rewards is not None else None,
                edges=traces[0].edges,
                share=share,
                **window,
            )
        )
        degraded_at = np.where(judges.degraded & np.isnan(degraded_at), t[:, line], degraded_at)
        healthy_at = np.where(judges.healthy & np.isnan(healthy_at), t[:, line], healthy_at)
    for row, trace in enumerate(traces):
        if not np.isnan(degraded_at[row]):
            yield Outcome(trace.path, "Degraded", float(degraded_at[row]))
        elif not np.isnan(healthy_at[row]):
            yield Outcome(trace.path, "Healthy", float(healthy_at[row]))
        else:
            yield Outcome(trace.path, "Undecided", None)


def _stacked(parts: Sequence[Floats | None]) -> Floats | None:
    known = [part for part in parts if part is not None]
    return np.stack(known) if known else None


def _padded(trace: Trace, longest: int) -> Trace:
    """The trace with its last scrape repeated: as long as the longest, and nothing more to see."""

    def longer(counts: Floats | None) -> Any:
        if counts is None or len(counts) == longest:
            return counts
        return np.concatenate([counts, np.repeat(counts[-1:], longest - len(counts), axis=0)])

    names = ("t", "requests", "errors", "weight", "latency", "rewards")
    return replace(trace, **{name: longer(getattr(trace, name)) for name in names})
