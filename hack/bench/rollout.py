"""Rules for rollouts side by side on the same simulated requests: `python -m hack.bench.rollout`.

For base error rates of 0.1, 0.5 and 2%, at 2, 20 and 200 requests per second, a candidate is as good as the stable
version, or its errors are 2, 5 or 10 times as many, or all of its responses fail. Then what is harder: regressions
that begin late or only show under load, errors in bursts, a day's course with shared incidents, and candidates right
at the limit of what is allowed. Writes hack/bench/results/rollout.md and rollout.json.

Ends with 1 if a bound does not hold: false rollbacks (alpha), bad versions promoted (beta), and bad responses within
the budget in 9 of 10 runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path

from tidegate import __version__
from tidegate.core.rollout.guards import Guard
from tidegate.core.rollout.weights import BUDGET, EAGER, STEADY
from tidegate.simulate.rules import Method, Tidegate, others
from tidegate.simulate.run import Summary, run, summary
from tidegate.simulate.streams import Traffic

RESULTS = Path(__file__).parent / "results"
OWN = (Tidegate("Tidegate", EAGER), Tidegate("Tidegate, Steady", STEADY))
METHODS: tuple[Method, ...] = (*OWN, *others())
ALPHA, BETA = OWN[0].alpha, OWN[0].beta
GUARD = Guard.errors()

BASES, RATES = (0.001, 0.005, 0.02), (200.0, 20.0, 2.0)
REGRESSIONS: tuple[float | None, ...] = (1, 2, 5, 10, None)
"""Times the stable version's errors; None: every response fails."""


@dataclass(frozen=True)
class Cell:
    """One kind of traffic and candidate."""

    name: str
    traffic: Traffic
    max_time: float

    @property
    def limit(self) -> float:
        """Share of errors that is still allowed."""
        return GUARD.rho * self.traffic.base + GUARD.delta

    @property
    def allowed(self) -> bool:
        """Whether the candidate is allowed throughout."""
        return self.traffic.candidate <= self.limit


@dataclass(frozen=True)
class Found:
    """What came of a cell."""

    cell: Cell
    rules: tuple[Summary, ...]


def main_cells() -> Iterator[Cell]:
    """Base rates by rates by regressions."""
    for base in BASES:
        for rate in RATES:
            for times in REGRESSIONS:
                name = "total" if times is None else f"{times:g}x"
                candidate = 1.0 if times is None else min(times * base, 1.0)
                yield Cell(name, Traffic(rate=rate, base=base, candidate=candidate), 21600.0 if rate < 10 else 7200.0)


def late_cells() -> Iterator[Cell]:
    """Regressions that are not there from the start."""
    for rate in (200.0, 20.0):
        for times in (5.0, 40.0):
            bad = Traffic(rate=rate, base=0.005, candidate=times * 0.005)
            for above in (10.0, 25.0, 34.0):
                yield Cell(f"{times:g}x above {above:g}% weight", replace(bad, above=above), 7200.0)
            for after in (60.0, 120.0, 300.0):
                yield Cell(f"{times:g}x after {after:g} s", replace(bad, after=after), 7200.0)


def rough_cells() -> Iterator[Cell]:
    """Traffic that is not as regular as the tests would like it."""
    for times in (1.0, 5.0):
        even = Traffic(rate=20.0, base=0.005, candidate=times * 0.005)
        for burst in (5, 20):
            yield Cell(f"{times:g}x, bursts of {burst}", replace(even, burst=burst), 7200.0)
        for every in (1800.0, 600.0):
            rough = replace(even, diurnal=0.5, incident=0.3, incident_every=every)
            yield Cell(f"{times:g}x, day's course, incidents every {every / 60:g} min", rough, 7200.0)


def limit_cells() -> Iterator[Cell]:
    """Candidates right at the limit: the most that is allowed, and the least that is not."""
    for base in BASES:
        limit = GUARD.rho * base + GUARD.delta
        yield Cell("at the limit", Traffic(rate=20.0, base=base, candidate=limit), 3600.0)
        yield Cell("just beyond it", Traffic(rate=20.0, base=base, candidate=limit + 1e-9), 3600.0)


def measure(cells: Iterable[Cell], methods: Sequence[Method], runs: int, seed: int) -> Iterator[Found]:
    """Runs the cells, and says so."""
    for cell in cells:
        begun = time.monotonic()
        results = run(cell.traffic, methods, runs=runs, max_time=cell.max_time, seed=seed)
        yield Found(cell, tuple(summary(result, cell.traffic.after) for result in results))
        told = f"{100 * cell.traffic.base:g}% at {cell.traffic.rate:g}/s, {cell.name}"
        print(f"{told}: {time.monotonic() - begun:.1f} s", file=sys.stderr)


def _cell(cell: Cell, s: Summary) -> str:
    """One entry of the table."""
    if cell.allowed:
        wrong = f"{_percent(s.rolled_back)} rolled back"
        return f"{wrong}; {_pair(s.promotion)}" if s.promotion else wrong
    parts = [f"{_percent(s.promoted)} missed"]
    if s.promoted_before:
        parts.append(f"{_percent(s.promoted_before)} promoted before")
    if s.rollback:
        parts.append(f"{_pair(s.rollback)}; {s.bad[1]:.0f} bad, {s.excess[1]:.0f} extra")
    if s.undecided >= 0.0005:
        parts.append(f"{_percent(s.undecided)} open")
    return "; ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _pair(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.0f} / {pair[1]:.0f} s" if pair else "never"


def _table(found: Sequence[Found]) -> Iterator[str]:
    names = [s.rule for s in found[0].rules]
    yield f"| errors | requests/s | candidate | {' | '.join(names)} |\n|---|---|---|{'---|' * len(names)}\n"
    for one in found:
        traffic = one.cell.traffic
        kind = one.cell.name + (", allowed" if one.cell.allowed and traffic.candidate != traffic.base else "")
        cells = " | ".join(_cell(one.cell, s) for s in one.rules)
        yield f"| {100 * traffic.base:g}% | {traffic.rate:g} | {kind} | {cells} |\n"


def _totals(found: Sequence[Found]) -> Iterator[str]:
    """Over all cells of the main table."""
    healthy = [one for one in found if one.cell.traffic.candidate == one.cell.traffic.base]
    beyond = [one for one in found if not one.cell.allowed]
    yield "| over all of them | rolled back, though like the stable version | promoted, though worse than allowed |\n"
    yield "|---|---|---|\n"
    for i, first in enumerate(found[0].rules):
        wrong = sum(one.rules[i].rolled_back for one in healthy) / len(healthy)
        missed = sum(one.rules[i].promoted for one in beyond) / len(beyond)
        yield f"| {first.rule} | {_percent(wrong)} | {_percent(missed)} |\n"


@dataclass(frozen=True)
class Bound:
    """What was promised of Tidegate's rules, and the cell that came nearest to breaking it."""

    what: str
    bound: float
    worst: float
    where: str
    slack: float = 0.0
    """What chance may add to a figure that is right at the bound: three standard errors."""

    @property
    def held(self) -> bool:
        """Whether it was kept."""
        return self.worst <= self.bound + self.slack


def bounds(main: Sequence[Found], late: Sequence[Found], rough: Sequence[Found], limit: Sequence[Found]) -> list[Bound]:
    """Checks what has to hold of Tidegate's own rules."""

    def worst(what: str, bound: float, figures: Iterable[tuple[float, Found, Summary]], chance: bool) -> Bound:
        most, one, s = max(figures, key=lambda figure: figure[0])
        where = f"{s.rule}: {100 * one.cell.traffic.base:g}%, {one.cell.traffic.rate:g}/s, {one.cell.name}"
        slack = 3 * sqrt(bound * (1 - bound) / s.runs) if chance else 0.0
        return Bound(what, bound, most, where, slack)

    def own(found: Iterable[Found]) -> Iterator[tuple[Found, Summary]]:
        return ((one, s) for one in found for s in one.rules if s.rule in {method.name for method in OWN})

    whole = [*main, *rough, *limit]
    return [
        worst(
            "false rollbacks, of any allowed candidate",
            ALPHA,
            ((s.rolled_back, one, s) for one, s in own(whole) if one.cell.allowed and one.cell.traffic.burst == 1),
            True,
        ),
        worst(
            "promotions of a candidate that is worse than allowed throughout",
            BETA,
            # an incident that both share hides a regression for as long as it lasts
            ((s.promoted, one, s) for one, s in own(whole) if not one.cell.allowed and not one.cell.traffic.incident),
            True,
        ),
        worst(
            "promotions of one that is so above a weight that the ramp reaches",
            BETA,
            ((s.promoted, one, s) for one, s in own(late) if one.cell.traffic.above),
            True,
        ),
        worst(
            "extra bad responses, 90th percentile, at twice what is allowed or more from the start",
            BUDGET,
            ((s.excess[2], one, s) for one, s in own(main) if one.cell.traffic.candidate >= 2 * one.cell.limit),
            False,
        ),
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="rollouts of each cell and rule (1000)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other requests (1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for rollout.md and rollout.json")
    options = parser.parse_args()
    begun = time.process_time()
    groups = [
        ("The same from the start to the end", list(measure(main_cells(), METHODS, options.runs, options.seed))),
        (
            "Regressions that begin late, or show above a weight only",
            list(measure(late_cells(), METHODS, options.runs, options.seed)),
        ),
        (
            "Bursts of errors; a day's course with incidents that both versions share",
            list(measure(rough_cells(), METHODS, options.runs, options.seed)),
        ),
        ("At the limit of what is allowed, for an hour", list(measure(limit_cells(), OWN, options.runs, options.seed))),
    ]
    checks = bounds(*(found for _, found in groups))
    took = time.process_time() - begun

    text = [_HEAD.format(runs=options.runs, seed=options.seed, version=__version__, took=took)]
    for title, found in groups:
        text += [f"\n## {title}\n\n", *_table(found)]
        if found is groups[0][1]:
            text += ["\n", *_totals(found)]
    text += ["\n## Bounds\n\n| | bound | worst cell | |\n|---|---|---|---|\n"]
    for check in checks:
        told = "held" if check.held else "NOT HELD"
        text.append(f"| {check.what} | {check.bound:g} | {check.worst:.4g} ({check.where}) | {told} |\n")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "rollout.md").write_text("".join(text), encoding="utf-8")
    whole = {
        "version": __version__,
        "runs": options.runs,
        "seed": options.seed,
        "cpu_seconds": round(took),
        "groups": {
            title: [
                {"name": one.cell.name, "allowed": one.cell.allowed, "max_time": one.cell.max_time}
                | {"traffic": asdict(one.cell.traffic), "rules": [asdict(s) for s in one.rules]}
                for one in found
            ]
            for title, found in groups
        },
        "bounds": [asdict(check) | {"held": check.held} for check in checks],
    }
    (options.output / "rollout.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print("".join(text))
    print(f"wrote {options.output / 'rollout.md'} and rollout.json", file=sys.stderr)
    return 0 if all(check.held for check in checks) else 1


_HEAD = """# Rules for rollouts, side by side

Made by `make bench-rollout` with Tidegate {version}: {runs} simulated rollouts of each cell and rule, seed {seed}, on
the same requests for all rules, in {took:.0f} s of one core.

A candidate that is allowed should be promoted: how many were rolled back, and the time to promotion. One that is worse
than allowed should be rolled back: how many were missed (promoted), the time to rollback, the bad responses that it
gave until then and how many of them are extra, as the stable version would not have given them. Times are medians and
90th percentiles; bad responses are medians over all runs. *Open*: undecided after 2 hours (6 at 2 requests/s). Allowed
are up to 1.5 times the stable version's errors and 0.5% more.

Tidegate is the default ramp (`pace: Eager`), Steady the careful one. Flagger: every 60 s a success rate of at least
99%, threshold 5, steps of 10% to 50%. Argo Rollouts: the same steps and check, failureLimit 3. The naive test compares
all counts so far at every look, one-sided at 1%, with the same steps.
"""


if __name__ == "__main__":
    sys.exit(main())
