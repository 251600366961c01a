"""Traces: counts of a stable version and a canary, as JSON lines, one a scrape, and the verdict on each.

Traces that have the same kinds of counts are judged side by side, line by line, as rows of one `Judges`.
"""

from __future__ import annotations

import json
import math
import sys
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
REWARDS = ("reward_count", "reward_sum", "reward_sumsq")


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
    errors: Floats | None
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
        return (self.errors is not None, self.edges, self.rewards is not None)


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
        guards = [] if trace.errors is None else [Guard.errors(rho=self.rho, delta=self.delta)]
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


def read(path: Path, edge: float | None = None) -> Trace:
    """Reads one file, or stdin if it is called "-". `BadTrace` with the line if it is no trace.

    What the first line counts is judged. A version that is not there yet has had no requests. `edge`: milliseconds from
    which a response is going to be called slow, which a histogram has to be able to tell.
    """
    try:
        if str(path) == "-":
            trace = _read(sys.stdin.buffer, "-")
        else:
            with path.open("rb") as lines:
                trace = _read(lines, str(path))
    except OSError as error:
        raise BadTrace(f"{path}: {error.strerror}") from error
    finite = [limit for limit in trace.edges if limit < math.inf]
    if edge is not None and trace.edges and edge > max(finite, default=0.0):
        raise BadTrace(
            f"{path}: nothing is counted by an edge of {edge:g} ms or more, but by {finite}; give a lower --edge"
        )
    return trace


def _read(lines: Iterable[bytes], path: str) -> Trace:
    layout: _Layout | None = None
    rows: list[list[Any]] = []
    at: list[int] = []
    there = [False, False]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            scrape = json.loads(line)
            versions, weights = scrape["versions"], scrape.get("weights")
            if not versions or set(versions) - set(ARMS):
                raise ValueError(f"the versions are {', '.join(sorted(versions)) or 'none'}, not stable and canary")
            layout = layout or _Layout(list(versions.values()))
            row = [scrape["t"], *((weights["stable"], weights["canary"]) if weights else (0, 0))]
            for i, arm in enumerate(ARMS):
                version = versions.get(arm)
                if version is None and arm not in versions and not there[i]:
                    row += layout.nothing
                    continue
                if version is None:
                    raise ValueError(f"there is no {arm} any more")
                there[i] = True
                row += layout.numbers(version)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadTrace(f"{path}, line {number}: not JSON ({error}); is the file cut off?") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            raise BadTrace(f"{path}, line {number}: {told}") from error
        rows.append(row)
        at.append(number)
    if layout is None:
        raise BadTrace(f"{path}: the file is empty")
    for arm, seen in zip(ARMS, there, strict=True):
        if not seen:
            raise BadTrace(f"{path}: no line has a version {arm}, so there is nothing to compare")
    return _trace(path, layout, rows, at)


class _Layout:
    """What the versions' counts are, by the first line."""

    def __init__(self, versions: Sequence[Mapping[str, Any]]) -> None:
        def counted(key: str) -> bool:
            return any(key in version for version in versions)  # then both have to have it

        self.errors, self.rewards = counted("errors"), counted(REWARDS[0])
        histograms: list[dict[str, Any]] = [version["latency_ms"] for version in versions if "latency_ms" in version]
        # a version that has had no requests may not have its histogram yet
        widest: dict[str, Any] = max(histograms, key=lambda histogram: len(histogram), default={})
        self.keys = tuple(sorted(widest, key=float))
        self.edges = tuple(map(float, self.keys))
        if not (self.errors or self.edges or self.rewards):
            raise ValueError(f"nothing to judge by: give errors, latency_ms, or {', '.join(REWARDS)} of both versions")
        if self.edges and not (self.edges[-1] == math.inf and self.edges[0] >= 0):
            raise ValueError('the edges of the histogram must be milliseconds, and the last "+Inf"')
        self.scalars: tuple[str, ...] = (
            *(("requests", "errors") if self.errors else ("requests",) if counted("requests") else ()),
            *(REWARDS if self.rewards else ()),
        )
        self.nothing = [0] * (len(self.scalars) + len(self.keys))

    def numbers(self, version: Mapping[str, Any]) -> list[Any]:
        """Those of one version: `scalars`, then the histogram."""
        out = [version[key] for key in self.scalars]
        if self.keys:
            histogram = version["latency_ms"]
            if not histogram and not any(out):
                return self.nothing
            if len(histogram) != len(self.keys) or any(key not in histogram for key in self.keys):
                raise ValueError("the histogram has other edges than before")
            out += [histogram[key] for key in self.keys]
        return out

    @property
    def names(self) -> list[str]:
        """What each number of a row is."""
        one = [*self.scalars, *(f"latency_ms {key}" for key in self.keys)]
        return ["t", *(f"weight of {arm}" for arm in ARMS), *(f"{name} of {arm}" for arm in ARMS for name in one)]


def _trace(path: str, layout: _Layout, rows: list[list[Any]], at: Sequence[int]) -> Trace:
    table = _table(rows)
    with np.errstate(invalid="ignore"):
        fine = np.isfinite(table) & (table >= 0)
    fine[:, 0] = np.isfinite(table[:, 0])
    if not fine.all():
        line, column = np.argwhere(~fine)[0]
        raise BadTrace(
            f"{path}, line {at[line]}: {layout.names[column]} is {rows[line][column]!r}: negative, or no finite number"
        )
    t, weights = table[:, 0], table[:, 1:3]
    if (back := np.flatnonzero(np.diff(t) < 0)).size:
        line = int(back[0]) + 1
        raise BadTrace(f"{path}, line {at[line]}: time goes back, from {t[line - 1]:g} to {t[line]:g}")
    counts = table[:, 3:].reshape(len(rows), 2, -1)
    scalars = {name: counts[:, :, i] for i, name in enumerate(layout.scalars)}
    latency = counts[:, :, len(layout.scalars) :]
    if (wrong := np.flatnonzero((np.diff(latency) < 0).any(axis=(1, 2)))).size:
        raise BadTrace(f"{path}, line {at[wrong[0]]}: counts of latency_ms must not fall with the edge")
    rewards = np.stack([scalars[name] for name in REWARDS], axis=2) if layout.rewards else None
    if rewards is not None:
        count, total, squares = np.moveaxis(rewards, 2, 0)
        much = 1e-6 * (1 + count)  # sums of floating numbers
        if (wrong := np.flatnonzero(((total > count + much) | (squares > total + much)).any(axis=1))).size:
            raise BadTrace(f"{path}, line {at[wrong[0]]}: rewards must lie between 0 and 1: their sums are too large")
    asked = weights.sum(axis=1)
    return Trace(
        path=path,
        t=t,
        requests=scalars.get("requests", np.zeros((len(rows), 2))),
        errors=scalars.get("errors"),
        weight=np.where(asked > 0, weights[:, 1] / np.where(asked > 0, asked, 1.0), 0.0),
        edges=layout.edges,
        latency=latency if layout.edges else None,
        rewards=rewards,
    )


def _table(rows: list[list[Any]]) -> Floats:
    """The rows as numbers; what is none becomes NaN."""
    try:
        table = np.array(rows)
    except ValueError:  # there are lists among them
        table = np.array([None])
    if table.dtype.kind in "if":
        return table.astype(np.float64)

    def number(value: Any) -> float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

    return np.array([[number(value) for value in row] for row in rows])


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
    requests, weight = (np.stack([getattr(trace, name) for trace in whole]) for name in ("requests", "weight"))
    errors, latency, rewards = (
        _stacked([getattr(trace, name) for trace in whole]) for name in ("errors", "latency", "rewards")
    )

    judges = Judges(options.settings(traces[0]), rows)
    in_force = weight[:, 0].copy()
    degraded_at, healthy_at = np.full(rows, np.nan), np.full(rows, np.nan)
    for line in range(1, longest):
        on: Bools = (line < lengths) & (t[:, line] > t[:, line - 1])
        window: dict[str, Any] = {"errors": np.zeros((rows, 2))}
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
