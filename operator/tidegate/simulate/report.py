"""What a simulation found: as a table, as JSON, and as a page with plots that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np

from tidegate import __version__
from tidegate.core.rollout.weights import first_weight
from tidegate.simulate.rules import Tidegate
from tidegate.simulate.run import PROMOTED, ROLLED_BACK, Result, Summary, summary
from tidegate.simulate.streams import Traffic


@dataclass(frozen=True)
class Case:
    """One kind of candidate, and what came of it by each rule."""

    traffic: Traffic
    results: tuple[Result, ...]

    def summaries(self) -> list[Summary]:
        """Of each rule; times count from when the fault shows."""
        return [summary(result, self.traffic.after) for result in self.results]


@dataclass(frozen=True)
class Study:
    """A healthy candidate and a bad one."""

    tidegate: Tidegate
    healthy: Case
    bad: Case
    runs: int
    max_time: float
    """Seconds."""
    seed: int


Row = Sequence[str]
HEALTHY_HEAD = ("rule", "rolled back", "promoted", "undecided", "promoted after", "errors served")
BAD_HEAD = ("rule", "promoted", "rolled back", "undecided", "rolled back after", "errors served", "of them extra")


def table(study: Study) -> str:
    """Aligned text for a terminal."""
    return "\n".join(_lines(study))


def _lines(study: Study) -> Iterator[str]:
    yield f"{_title(study)}; times and numbers: median / 90th percentile"
    yield from ("", f"Healthy candidate, {_healthy(study)}", *_aligned([HEALTHY_HEAD, *_healthy_rows(study)]))
    yield from ("", f"Bad candidate, {_bad(study)}", *_aligned([BAD_HEAD, *_bad_rows(study)]))
    for warning in _warnings(study):
        yield from ("", warning)


def _title(study: Study) -> str:
    traffic = study.bad.traffic
    kind = [f"{_number(traffic.rate)} requests/s"]
    if traffic.diurnal:
        kind.append(f"a day's course of +-{_percent(traffic.diurnal)}")
    if traffic.burst > 1:
        kind.append(f"errors in bursts of {traffic.burst}")
    if traffic.incident:
        kind.append(f"shared incidents of {_percent(traffic.incident)}")
    return f"{study.runs} rollouts each at {', '.join(kind)}, for at most {_time(study.max_time)}, seed {study.seed}"


def _healthy(study: Study) -> str:
    traffic = study.healthy.traffic
    slow = f", {_percent(traffic.slow)} slow" if traffic.slow is not None else ""
    return f"{_percent(traffic.base)} errors{slow} like the stable version"


def _bad(study: Study) -> str:
    traffic = study.bad.traffic
    told = f"{_percent(traffic.candidate)} errors instead of {_percent(traffic.base)}"
    if traffic.slow is not None and traffic.slow_candidate is not None:
        told += f", {_percent(traffic.slow_candidate)} slow instead of {_percent(traffic.slow)}"
    if traffic.above:
        told += f", above {traffic.above:g}% weight"
    if traffic.after:
        before = ", ".join(f"{s.rule} {_share(s.promoted_before, s)}" for s in study.bad.summaries())
        told += f", from {_time(traffic.after)} on (times count from then; promoted before: {before})"
    return told


def _warnings(study: Study) -> Iterator[str]:
    """What one should know of the settings."""
    own, traffic = study.tidegate, study.bad.traffic
    if not first_weight(own.ramp, traffic.rate, own.budget):
        yield (
            f"At {_number(traffic.rate)} requests/s even 1% may cost more than half of --bad-responses. Tidegate "
            "begins there only with risk.beyondBudget, which is assumed here."
        )
    shares = {
        "errors": (traffic.base, traffic.candidate),
        "latency": (traffic.slow or 0.0, traffic.slow_candidate or 0.0),
    }
    if all(bad <= guard.rho * stable + guard.delta for guard in own.guards for stable, bad in [shares[guard.kind]]):
        limit = _percent(own.guards[0].rho * traffic.base + own.guards[0].delta)
        yield (
            f"Tidegate's settings allow this candidate: the limit is {limit} errors. Promoting it is right by them; a "
            "smaller --max-increase or --max-ratio is stricter."
        )


def _healthy_rows(study: Study) -> list[Row]:
    return [
        (
            s.rule,
            _share(s.rolled_back, s),
            _share(s.promoted, s),
            _share(s.undecided, s),
            _times(s.promotion),
            _pair(s.bad),
        )
        for s in study.healthy.summaries()
    ]


def _bad_rows(study: Study) -> list[Row]:
    return [
        (
            s.rule,
            _share(s.promoted, s),
            _share(s.rolled_back, s),
            _share(s.undecided, s),
            _times(s.rollback),
            _pair(s.bad),
            _pair(s.excess),
        )
        for s in study.bad.summaries()
    ]


def _aligned(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells])


def _share(value: float, of: Summary) -> str:
    """A share of the runs, with as many digits as they bear."""
    if value == 0:
        return "0"
    return f"{100 * value:.{1 if of.runs >= 500 else 0}f}%"


def _pair(amounts: tuple[float, float, float]) -> str:
    return f"{amounts[1]:.0f} / {amounts[2]:.0f}"


def _times(pair: tuple[float, float] | None) -> str:
    return " / ".join(_time(value) for value in pair) if pair else "-"


def _time(value: float) -> str:
    """As a person says it."""
    if value < 1000:
        return f"{value:.0f}s"
    return f"{value / 60:.0f}m" if value < 7200 else f"{value / 3600:.1f}h".replace(".0h", "h")


def _percent(share: float) -> str:
    return f"{_number(100 * share)}%"


def _number(value: float) -> str:
    return f"{value:.4g}"


def as_json(study: Study) -> str:
    """The same in full."""
    whole = {
        "version": __version__,
        "runs": study.runs,
        "max_time": study.max_time,
        "seed": study.seed,
        "tidegate": asdict(study.tidegate),
        "cases": {
            name: {"traffic": asdict(case.traffic), "rules": [asdict(s) for s in case.summaries()]}
            for name, case in (("healthy", study.healthy), ("bad", study.bad))
        },
    }
    return json.dumps(whole, indent=2)


# --- the page ---------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2933; --faint: #8a94a0; --grid: #dfe3e8;
  --c0: #0b62d6; --c1: #c2410c; --c2: #7e22ce; --c3: #6b7280; --c4: #047857; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --faint: #8a94a0; --grid: #2c333b;
  --c0: #6cb0ff; --c1: #ff9d5c; --c2: #d0a2ff; --c3: #a5adb8; --c4: #4fd1a5; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--grid); }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; } .note { color: var(--faint); }
svg { width: 100%; height: auto; } svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--grid); } .curve { fill: none; stroke-width: 2.2; }
"""
_DASHES = ("", "7 4", "2 4", "10 3 2 3", "1 6")


def page(study: Study) -> str:
    """A page of HTML with plots, self-contained, for light and dark."""
    return "".join(_page(study))


def _page(study: Study) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield f"<title>Rollouts at {_number(study.bad.traffic.rate)} requests/s</title>\n<style>{_STYLE}</style>\n"
    yield f"<h1>How rollouts would go</h1>\n<p>{escape(_title(study))}. All rules met the same requests.</p>\n"
    yield f"<h2>Healthy candidate: {escape(_healthy(study))}</h2>\n"
    yield _html_table([HEALTHY_HEAD, *_healthy_rows(study)])
    yield _curves(study.healthy, PROMOTED, "promoted", study.max_time)
    yield _curves(study.healthy, ROLLED_BACK, "rolled back, wrongly", study.max_time)
    yield f"<h2>Bad candidate: {escape(_bad(study))}</h2>\n"
    yield from (f"<p>{escape(warning)}</p>\n" for warning in _warnings(study))
    yield _html_table([BAD_HEAD, *_bad_rows(study)])
    yield _curves(study.bad, ROLLED_BACK, "rolled back", study.max_time)
    yield _curves(study.bad, PROMOTED, "promoted, wrongly", study.max_time)
    yield _bars(study.bad)
    yield (
        '<p class="note">Times and numbers in the tables are medians and 90th percentiles; times are those of the runs '
        "that ended so. Errors served are those of the candidate until the decision, over all runs. What a bad version "
        f"does after its promotion is not counted. Tidegate {__version__}, seed {study.seed}.</p>\n</html>\n"
    )


def _html_table(rows: Sequence[Row]) -> str:
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    lines = "\n".join(f"<tr>{cells}</tr>" for cells in body)
    return f'<div class="wide"><table>\n<tr>{head.replace("td>", "th>")}</tr>\n{lines}\n</table></div>\n'


_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 300, 60, 150, 34, 40


def _curves(case: Case, outcome: int, what: str, max_time: float) -> str:
    """Share of the runs with an outcome, over time."""
    decided = np.concatenate([r.time[r.outcome == outcome] for r in case.results])
    if not len(decided):
        return f'<p class="note">No rule {escape(what.replace(", wrongly", ""))} it in any run.</p>\n'
    end = min(max_time, float(np.quantile(decided, 0.99)) * 1.05)
    shares = [float((r.outcome == outcome).mean()) for r in case.results]
    most = _round_up(max(shares))

    def x(t: float) -> float:
        return _LEFT + (_W - _LEFT - _RIGHT) * t / end

    def y(share: float) -> float:
        return _H - _BOTTOM - (_H - _TOP - _BOTTOM) * share / most

    parts = [_text(_LEFT, 18, f"share of runs {what}, over time")]
    for i in range(5):
        share = most * i / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(_text(_LEFT - 8, y(share) + 4, f"{100 * share:.3g}%", "end"))
    parts.extend(_text(x(t), _H - _BOTTOM + 20, _time(t) if t else "0", "middle") for t in _ticks(end))
    for i, result in enumerate(case.results):
        times, counts = np.unique(result.time[result.outcome == outcome], return_counts=True)
        keep = times <= end
        heights = counts.cumsum() / len(result.outcome)
        points = [f"M{x(0):.1f} {y(0):.1f}"]
        points += [f"H{x(t):.1f}V{y(h):.1f}" for t, h in zip(times[keep], heights[keep], strict=True)]
        parts.append(f'<path class="curve" {_stroke(i)} d="{"".join(points)}H{x(end):.1f}"/>')
    return _svg(_H, [*parts, *_legend(case.results)], f"Share of runs {what} over time, by rule")


def _bars(case: Case) -> str:
    """Errors that the candidate served: from the median to the 90th percentile, on a logarithmic scale."""
    found = case.summaries()
    top = 10 ** np.ceil(np.log10(max(10.0, *(s.bad[2] + 1 for s in found))))
    height = _TOP + 34 * len(found) + _BOTTOM

    def x(amount: float) -> float:
        return float(_LEFT + 90 + (_W - _LEFT - 190) * np.log10(amount + 1) / np.log10(top + 1))

    parts = [_text(8, 18, "errors served by the candidate until the decision: median to 90th percentile")]
    for exponent in range(int(np.log10(top)) + 1):
        at = x(10**exponent)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(_text(at, height - _BOTTOM + 20, f"{10**exponent}", "middle"))
    for i, s in enumerate(found):
        y, colour = _TOP + 34 * i + 17, f"var(--c{i % 5})"
        low, high = x(s.bad[1]), x(s.bad[2])
        parts.append(_text(8, y + 4, s.rule))
        parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="7"/>')
        parts.append(f'<circle cx="{low:.1f}" cy="{y}" r="7" fill="{colour}"/>')
        parts.append(_text(high + 12, y + 4, f"{s.bad[1]:.0f} / {s.bad[2]:.0f}"))
    return _svg(height, parts, "Errors served by the candidate until the decision, by rule")


def _legend(results: Sequence[Result]) -> Iterator[str]:
    for i, result in enumerate(results):
        y = _TOP + 10 + 24 * i
        yield f'<line x1="{_W - _RIGHT + 14}" x2="{_W - _RIGHT + 40}" y1="{y}" y2="{y}" class="curve" {_stroke(i)}/>'
        yield _text(_W - _RIGHT + 46, y + 4, result.rule)


def _stroke(i: int) -> str:
    return f'stroke="var(--c{i % 5})" stroke-dasharray="{_DASHES[i % 5]}"'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    inner = "\n".join(parts)
    return f'<svg viewBox="0 0 {_W} {height}" role="img" aria-label="{escape(label)}">\n{inner}\n</svg>\n'


def _ticks(end: float) -> Iterator[float]:
    """Times to write under an axis, in seconds."""
    step = next((step for step in (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600) if end / step < 8), 86400)
    return (float(t) for t in range(0, int(end) + 1, step))


def _round_up(share: float) -> float:
    """The top of an axis."""
    return next(top for top in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if share <= top)
